"""`--beyond`, small, on real drives."""

from __future__ import annotations

from emucsd.reproduce.rm_ssd.beyond import MECHANISMS, run_beyond

WORKLOADS = ["amazon", "K = 0", "K = 0.3", "K = 1", "K = 2"]


def test_beyond() -> None:
    """Every pair is measured; FP32 rows err nowhere, others within their types; each mechanism does what it says."""
    told: list[float] = []
    found = run_beyond(seed=1, quick=True, progress=lambda _text, done: told.append(done))
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert [w["name"] for w in found["workloads"]] == WORKLOADS
    rows = {(row["workload"], row["mechanism"]): row for row in found["rows"]}
    assert len(rows) == len(WORKLOADS) * len(MECHANISMS)
    dtypes = {m.name: m for m in MECHANISMS}
    limits = {"float32": 0.0, "float16": 1e-2, "int8": 5e-2, "int4": 5e-1}
    for (workload, name), row in rows.items():
        base = rows[workload, row["versus"] or name]
        assert row["ratio"] == round(base["virtual_ns"] / row["virtual_ns"], 3)
        limit = 1e-3 if name == "two drives" else limits[dtypes[name].dtype]
        assert row["error"] <= limit, (workload, name)
        assert (row["cache_hits"] > 0) <= (dtypes[name].cache > 0), (workload, name)
    for workload in WORKLOADS:
        assert rows[workload, "RM-SSD"]["flash_reads"] == 1
        assert rows[workload, "RM-SSD"]["ratio"] == 1
        assert 1.7 < rows[workload, "two drives"]["ratio"] < 2.3
        assert rows[workload, "page register"]["ratio"] > 1
    assert rows["amazon", "placement"]["ratio"] > 1
    assert rows["K = 0", "all together"]["ratio"] > 2
    assert set(found["floor"]["all_together"]) == set(WORKLOADS)
