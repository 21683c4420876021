"""The form of a program's text."""

import pytest

from wan_tpu.planner.hlo import HBM, Array, ProgramTextError, leaves, parse_program, parse_type

PROGRAM = """\
HloModule jit_f, is_scheduled=true, num_partitions=4

FileNames
1 "/somewhere/file.py"

%fused_computation (param_0: bf16[8,128]) -> bf16[8,128] {
  %param_0 = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  ROOT %add.1 = bf16[8,128]{1,0:T(8,128)(2,1)} add(%param_0, %param_0), metadata={op_name="a/b"}
}

ENTRY %main (x: bf16[8,128]) -> (bf16[8,128], s32[]) {
  %x = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} parameter(0), sharding={replicated}
  %fusion.1 = bf16[8,128]{1,0:T(8,128)(2,1)} fusion(%x), calls=%fused_computation, notes={note={
"a":"line, (with) {brackets}"
}}, metadata={op_name="jit(f)/add"}
  %one..sunk = s32[]{:T(128)} constant(1)
  ROOT %t = (bf16[8,128]{1,0:T(8,128)}, /*index=1*/s32[]{:T(128)}) tuple(%fusion.1, %one..sunk)
}
"""


def test_reads_computations_types_operands_and_attributes():
    program = parse_program(PROGRAM)
    assert (program.entry, program.num_devices) == ("main", 4)
    main = program.computations["main"]
    fusion = main.instructions["fusion.1"]
    assert (fusion.opcode, fusion.operands) == ("fusion", ("x",))
    assert fusion.called("calls") == "fused_computation"
    assert fusion.op_name == "jit(f)/add"
    assert main.instructions["one..sunk"].operands == ("1",)
    assert [a.dtype for a in leaves(main.root.kind)] == ["bf16", "s32"]
    assert main.operand_kinds(fusion)[0] == parse_type("bf16[8,128]{1,0:T(8,128)(2,1)S(1)}")


@pytest.mark.parametrize(
    ("text", "space", "num_bytes", "padded"),
    [
        ("f32[8,128]{1,0:T(8,128)}", HBM, 4096, 4096),
        ("bf16[8,128]{1,0:T(8,128)(2,1)S(1)}", 1, 2048, 2048),
        # Two rows fill a tile of eight; in the other order the tile is over the other dimensions.
        ("f32[2,130]{1,0:T(8,128)}", HBM, 1040, 8 * 256 * 4),
        ("f32[2,130]{0,1:T(8,128)}", HBM, 1040, 136 * 128 * 4),
        ("f32[2,130]{1,0:T(2,128)}", HBM, 1040, 2 * 256 * 4),
        ("f32[5]{0:T(128)}", HBM, 20, 512),
        ("s32[]{:T(128)}", HBM, 4, 512),
        ("s4[10]", HBM, 5, 5),
        ("pred[3]{0}", HBM, 3, 3),
        ("f8e4m3fn[16]{0}", HBM, 16, 16),
    ],
)
def test_bytes_of_an_array(text, space, num_bytes, padded):
    array = parse_type(text)
    assert isinstance(array, Array)
    assert (array.space, array.num_bytes, array.padded_bytes) == (space, num_bytes, padded)


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "no entry"), (PROGRAM.replace("ROOT %add.1", "%add.1"), "no root")],
)
def test_says_what_it_cannot_read(text, words):
    with pytest.raises(ProgramTextError, match=words):
        parse_program(text)


def test_names_the_instruction_it_cannot_read():
    with pytest.raises(ProgramTextError, match=r"fusion\.1"):
        parse_program(PROGRAM.replace("bf16[8,128]{1,0:T(8,128)(2,1)} fusion", "quux[8] fusion"))
