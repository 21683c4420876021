#!/bin/sh
# What the container runs: `serve` is the service, of which WAN_TPU_ROLE says which part it is in a fleet;
# anything else is a command of wan-tpu (train, generate).
# By exec, so that it is process 1 itself and gets SIGTERM: the service drains, a training run saves.
set -eu
# libtpu locks host memory for transfers. A pod with chips has SYS_RESOURCE and may raise the limit; whom it
# is refused has no chips, or libtpu says so itself.
# shellcheck disable=SC3045 # the sh of the image, Debian's, has -l
ulimit -l unlimited 2> /dev/null || true
if [ "${1:-}" = serve ]; then
    shift
    exec python -m server "$@"
fi
exec wan-tpu "$@"
