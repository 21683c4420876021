"""How XLA writes the groups of a collective."""

import pytest

from wan_tpu.planner.collectives import read_groups
from wan_tpu.planner.hlo import Array, Instruction, ProgramTextError


def groups_of(attributes, num_devices=8):
    instruction = Instruction(
        name="g", kind=Array("f32", ()), opcode="all-gather", operands=(), attributes=attributes
    )
    return read_groups(instruction, num_devices)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("replica_groups={{0,4},{1,5}}, to_apply=%add", ((0, 4), (1, 5))),
        ("replica_groups=[2,4]<=[8], dimensions={1}", ((0, 1, 2, 3), (4, 5, 6, 7))),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("replica_groups=[4,2]<=[2,2,2]T(1,0,2)", ((0, 1), (4, 5), (2, 3), (6, 7))),
        ("channel_id=1, replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={1}",
         ((0, 1, 2, 3), (4, 5, 6, 7))),
        ("replica_groups=mesh['a'=2,'b'=1,'c'=4] {'a'}", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}", ((0, 1, 4, 5), (2, 3, 6, 7))),
        ("replica_groups=mesh['a'=8] {'a':(2)2}", ((0, 2), (1, 3), (4, 6), (5, 7))),
        ("replica_groups=mesh['a'=1,'b'=2,'c'=1,'d'=2], device_ids=([2,2]T(1,0)) {'b'}, dims={1}",
         ((0, 1), (2, 3))),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=(3,1,2,0) {'b'}", ((3, 1), (2, 0))),
        ("replica_groups={}, to_apply=%add", (tuple(range(8)),)),
        ("dimensions={0}", (tuple(range(8)),)),
        ("channel_id=2, source_target_pairs={{0,1},{1,0}}, metadata={}", ((0, 1), (1, 0))),
    ],
)  # fmt: skip
def test_every_form(text, expected):
    assert groups_of(text) == expected


@pytest.mark.parametrize(
    "text", ["rows(2)", "[4,2]<=rows", "mesh['a'=4], device_ids=(0,1) {'a'}", "{{0,1},{x}}"]
)
def test_another_form_is_named(text):
    with pytest.raises(ProgramTextError, match="groups of g"):
        groups_of(f"replica_groups={text}, dimensions={{1}}")
