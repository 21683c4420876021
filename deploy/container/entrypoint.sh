#!/bin/sh
# What the container runs: `serve` is the service, anything else a command of wan-tpu (train, generate).
# By exec, so that it is process 1 itself and gets SIGTERM: the service drains, a training run saves.
set -eu
if [ "${1:-}" = serve ]; then
    shift
    exec python -m server "$@"
fi
exec wan-tpu "$@"
