"""A testbed's TOML: defaults, what each key takes, and errors that name key, value and limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from emucsd_femu import description
from emucsd_femu.description import Description, Isp, parse, read, with_options
from emucsd_femu.errors import DescriptionError

WHOLE = """
[testbed]
name = "lab"
images = "small"

[[drive]]
name = "one"
profile = "my.toml"
size = "2GiB"
store = "flash/one"
set = {"nand.read_ns" = 50000, pg_wr_lat = 7, "nand.suspend" = true}
isp = {engine = "none"}

[[drive]]
isp = {memory = "512MiB"}

[host]
memory = 536870912
cpus = 2

[tunnel]
network = "192.168.5.0/28"
mtu = 9000

[cluster]
ocfs2 = false
"""


def test_nothing_is_the_default() -> None:
    """No file: one drive, a host machine, a machine in the drive, a tunnel."""
    found = read(None)
    assert found == Description()
    assert [drive.name for drive in found.drives] == ["csd"]
    assert list(found.isps) == [0]
    assert found.host.engine == "machine"
    assert (found.tunnel.address(None), found.tunnel.address(0)) == ("10.77.0.1", "10.77.0.2")


def test_every_key(tmp_path: Path) -> None:
    """All of a whole file arrives; relative paths start from the file, not from where the program runs."""
    file = tmp_path / "lab.toml"
    file.write_text(WHOLE)
    found = read(file)
    assert (found.name, found.images, found.ocfs2) == ("lab", "small", False)
    one, two = found.drives
    assert (one.name, one.profile, one.size) == ("one", str(tmp_path / "my.toml"), "2GiB")
    assert one.store == str(tmp_path / "flash/one")
    assert dict(one.set) == {"nand.read_ns": "50000", "pg_wr_lat": "7", "nand.suspend": "true"}
    assert two.name == "csd1"
    assert two.isp == Isp("machine", 512 << 20)
    assert list(found.isps) == [1]
    assert (found.host.memory, found.host.cpus) == (512 << 20, 2)
    assert (found.tunnel.address(1), found.tunnel.mtu) == ("192.168.5.3", 9000)


def test_a_dotted_knob_needs_no_quotes() -> None:
    """`set = {nand.read_ns = 5}` is a table within a table for TOML; what is meant is the same."""
    found = parse({"drive": [{"set": {"nand": {"read_ns": 5}}}]})
    assert found.drives[0].set == (("nand.read_ns", "5"),)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"hosts": {}}, "unknown key hosts; there are testbed, drive, host"),
        ({"testbed": {"nmae": "x"}}, "testbed: unknown key nmae"),
        ({"testbed": {"name": "a/b"}}, "testbed.name = 'a/b'"),
        ({"testbed": {"images": "tiny"}}, "testbed.images = 'tiny': must be one of full, small"),
        ({"testbed": 5}, "testbed = 5: must be a table"),
        ({"drive": {}}, r"write each as \[\[drive\]\]"),
        ({"drive": []}, "a testbed has 1 to 8"),
        ({"drive": [{}] * 9}, "9 of them"),
        ({"drive": [{"size": "lots"}]}, r"drive\[0\].size = 'lots': must be a number of bytes"),
        ({"drive": [{"size": "0GiB"}]}, "0GiB"),
        ({"drive": [{"clock": "sundial"}]}, "real, virtual"),
        ({"drive": [{"clock": "virtual"}]}, "a Linux in a machine cannot say when it waits"),
        ({"drive": [{"set": ["a=b"]}]}, "must be a table"),
        ({"drive": [{"isp": {"engine": "steam"}}]}, r"drive\[0\].isp.engine = 'steam': must be one of machine, local"),
        ({"drive": [{"isp": {"memory": "1MiB"}}]}, "at least 256 MiB"),
        ({"drive": [{"name": "x"}, {"name": "x"}]}, "'x' is given twice"),
        ({"drive": [{"name": "testbed"}]}, "'testbed' is given twice"),
        ({"host": {"cpus": 0}}, "host.cpus = 0: must be a number from 1 to 64"),
        ({"host": {"cpus": True}}, "host.cpus = True"),
        ({"tunnel": {"network": "10.77.0.0/30"}}, "4 addresses"),
        ({"tunnel": {"network": "10.77.0.1/24"}}, "must be an IPv4 network"),
        ({"tunnel": {"mtu": 100}}, "1280 to 65535"),
        ({"cluster": {"ocfs2": 1}}, "must be true or false"),
        ({"cluster": {"mount": "shared"}}, "must be an absolute folder"),
        ({"cluster": {"mount": "/a b"}}, "must be an absolute folder"),
    ],
)
def test_what_is_refused(content: dict[str, Any], told: str) -> None:
    """One line: the key, what it was given, what it takes."""
    with pytest.raises(DescriptionError, match=told):
        parse(content)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """Not there, or no TOML: the error names the file."""
    with pytest.raises(DescriptionError, match=r"nothing\.toml: No such file"):
        read(tmp_path / "nothing.toml")
    (tmp_path / "bad.toml").write_text("[testbed\n")
    with pytest.raises(DescriptionError, match=r"bad\.toml: no TOML"):
        read(tmp_path / "bad.toml")


def test_a_command_line_says_more() -> None:
    """Name, images and the only drive's fields come after the file; of several drives none is meant."""
    found = with_options(read(None), name="mine", small=True, drive={"profile": "null", "size": "1GiB"})
    assert (found.name, found.images, found.drives[0].profile, found.drives[0].size) == (
        "mine",
        "small",
        "null",
        "1GiB",
    )
    with pytest.raises(DescriptionError, match="which of 2 drives"):
        with_options(parse({"drive": [{}, {}]}), drive={"size": "1GiB"})
    with pytest.raises(DescriptionError, match="'a b'"):
        with_options(read(None), name="a b")
    with pytest.raises(DescriptionError, match="virtual"):
        with_options(read(None), drive={"clock": "virtual"})


@pytest.mark.parametrize(
    ("text", "amount"), [("512", 512), ("1k", 1024), ("1.5MiB", 3 << 19), ("2GB", 2 << 30), (7, 7)]
)
def test_sizes(text: object, amount: int) -> None:
    """Bytes, K, M, G, T, with or without iB."""
    assert description.size(text) == amount
