"""Register values: named bits of an int."""

from __future__ import annotations

import pickle

import pytest

from emucsd_wire.registers import VERSION_2_1, Aqa, Cap, Cc, Csts


def test_fields_of_a_word() -> None:
    """SPDK's CC = 00460001h is: enabled, 64-byte entries, 16-byte completions."""
    cc = Cc(0x0046_0001)
    assert (cc.en, cc.css, cc.mps, cc.ams, cc.shn, cc.iosqes, cc.iocqes, cc.crime) == (1, 0, 0, 0, 0, 6, 4, 0)


def test_replace_keeps_the_other_fields() -> None:
    """Changing one field leaves the rest of the register alone."""
    assert Cc(0x0046_0001).replace(shn=1) == 0x0046_4001
    assert Csts.of(rdy=1, shst=2) == 0x9


def test_a_value_that_does_not_fit_is_refused() -> None:
    """A field's width is enforced, and the error names the field and its limit."""
    with pytest.raises(ValueError, match=r"Aqa\.asqs = 0x1000 does not fit 0xfff"):
        Aqa.of(asqs=4096)


def test_repr_decodes() -> None:
    """The repr of a register is its decoded form: traces need nothing else."""
    assert repr(Csts(0x9)) == "Csts(0x9: rdy=0x1 shst=0x2)"


def test_words_survive_pickling() -> None:
    """A word is copied as a word."""
    assert type(pickle.loads(pickle.dumps(Cap(3)))) is Cap


def test_version() -> None:
    """NVMe 2.1 is 00020100h."""
    assert VERSION_2_1 == 0x0002_0100
