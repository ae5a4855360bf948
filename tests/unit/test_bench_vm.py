"""`emucsd bench vm`: how its figures are made of fio's."""

from __future__ import annotations

from emucsd_femu.bench_vm import DEPTHS, DISKS, EMPTY, OURS, RIVAL, ratios


def test_ratios_are_of_medians() -> None:
    """One disturbed round changes no ratio."""
    iops = {OURS: (300.0, 1.0, 310.0), RIVAL: (200.0, 900.0, 150.0), EMPTY: (100.0, 100.0, 100.0)}
    runs = [
        {"disk": disk, "queue_depth": depth, "iops": iops[disk][number] * depth}
        for number in range(3)
        for disk in DISKS
        for depth in DEPTHS
    ]
    found = ratios(runs)
    assert (found["qd32_ratio"], found["qd1_ratio"]) == (1.5, 1.5)
    assert (found["qd32_null_ratio"], found["qd1_null_ratio"]) == (3.0, 3.0)
    assert found["iops"][RIVAL] == {"qd32": 6400, "qd1": 200}
