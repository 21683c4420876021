"""Which variables of the environment a server knows."""

from server.environment import unknown_variables
from wan_tpu.cli.remote.options import KEY_VARIABLE, SERVER_VARIABLE


def test_what_is_misspelt_is_found_and_the_clients_variables_are_no_mistake():
    """Red when a shell that has `wan-tpu remote`'s address is told of an unknown setting."""
    names = [SERVER_VARIABLE, KEY_VARIABLE, "WAN_TPU_MODEL", "wan_tpu_port", "PATH"]
    assert unknown_variables([*names, "WAN_TPU_MODLE"]) == ["WAN_TPU_MODLE"]
