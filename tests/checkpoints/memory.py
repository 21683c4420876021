"""What a process of its own has in memory; loading is measured in such processes."""


def memory(name: str) -> int:
    """Bytes of `VmRSS` (now) or `VmHWM` (at most so far).

    `getrusage`'s peak begins with that of the process that started this one.
    """
    with open("/proc/self/status") as file:
        (line,) = (line for line in file if line.startswith(name))
    return int(line.split()[1]) * 1024
