#!/usr/bin/env bash
# Makes an environment again: the exact versions of one of requirements/*.txt, torch, and wan-tpu.
#
#     deploy/environment.sh LIST FOLDER [--editable]       # for example: train .venv --editable
#
# LIST is library, server, train, slice (TPU), fleet, cuda or dev. The container image and the Nix flake run
# this, and it runs by hand. With --editable the checkout itself is what runs, else a copy of it.
#
# PYTHON         the Python to take, 3.11 or 3.12 (default python3)
# UV             the uv to take; by default the one of requirements/uv.txt, fetched and thrown away
# TORCH_BACKEND  which build of torch, as uv names it (default cpu, from PyTorch's own index); `any` takes
#                what the configured index has: a build for CUDA, several GB, unless it is arranged for
set -euo pipefail

PYTHON=${PYTHON:-python3}
TORCH_BACKEND=${TORCH_BACKEND:-cpu}
TORCH=torch==2.13.0

fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

[ $# -ge 2 ] || fail "expected LIST and FOLDER, such as: deploy/environment.sh train .venv"
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
list=$checkout/requirements/$1.txt folder=$(realpath --canonicalize-missing "$2")
[ -e "$list" ] || fail "there is no list '$1'; there are: $(cd "$checkout/requirements" && printf '%s ' *.txt)"
case ${3:-} in
    '' | --editable) ;;
    *) fail "'$3' is not known; expected --editable or nothing" ;;
esac
python=$(command -v "$PYTHON") || fail "there is no $PYTHON; name a Python 3.11 or 3.12 with PYTHON="
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' \
    || fail "$("$python" --version) cannot run wan-tpu; name a Python 3.11 or 3.12 with PYTHON="

work=$(mktemp --directory)
trap 'rm -rf "$work"' EXIT
if [ -z "${UV:-}" ]; then
    "$python" -m venv "$work/tools"
    "$work/tools/bin/python" -m pip install --quiet --disable-pip-version-check \
        --no-deps --require-hashes --requirement "$checkout/requirements/uv.txt"
    UV=$work/tools/bin/uv
fi
# uv would read what pyproject.toml tells `make lock`, and take a torch for CUDA for one without.
cd "$work"

"$UV" venv --quiet --allow-existing --python "$python" "$folder"
into_venv() { "$UV" pip install --quiet --python "$folder/bin/python" "$@"; }

into_venv --no-deps --require-hashes --requirement "$list"
backend=(--torch-backend "$TORCH_BACKEND")
[ "$TORCH_BACKEND" != any ] || backend=()
into_venv "${backend[@]}" "$TORCH"
if [ "${3:-}" = --editable ]; then
    project=(--editable "$checkout")
else # from a copy: building leaves files beside the source, and would take old ones for new
    mkdir source
    (cd "$checkout" && cp -R pyproject.toml README.md LICENSE wan_tpu server "$work/source")
    project=(--no-cache "$work/source")
fi
into_venv --no-deps --no-build-isolation "${project[@]}"
"$UV" pip check --quiet --python "$folder/bin/python"
count=$("$UV" pip list --quiet --format=freeze --python "$folder/bin/python" | wc -l)
printf '%s: %s packages\n' "$folder" "$count"
