"""NaN ends all processes of a slice alike, with the cause and without a file."""

from tests.damaged_models import copy_wan_tiny, edit_tensor
from tests.multihost.test_generate import command  # noqa: F401 - a fixture


def test_each_process_says_why(command, tmp_path):  # noqa: F811
    """The bad weight lies with the devices of one process; both must find it at the same step."""
    model = copy_wan_tiny(tmp_path / "model")

    def spoil(tensor):
        tensor[-1] = float("nan")
        return tensor

    edit_tensor(model, "transformer", "proj_out.bias", spoil)
    both = command("--model", str(model), "--steps", "2", "--layout", "dp2-sp2-tp2", "-o", "no.mp4")
    assert both.ends() == {0: (1, ""), 1: (1, "")}, both.log(0) + both.log(1)
    for number in (0, 1):
        assert "NaN or infinite numbers in denoise, step 1 of 2" in both.log(number)
        assert "Traceback" not in both.log(number)
    assert not list(both.folder.glob("no*")) + list(both.folder.glob(".wan-tpu*"))
