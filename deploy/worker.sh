#!/usr/bin/env bash
# What deploy/wan-tpu-deploy does on one worker. It comes over ssh on standard input:
#
#     sudo bash -s -- install REPOSITORY COMMIT < deploy/worker.sh
#
# so worker and laptop never disagree about what a verb means. Everything may run twice.
#
#     /opt/wan-tpu/releases/COMMIT    a checkout with its own .venv; `current` is the one that runs
#     /etc/wan-tpu/wan-tpu.env        what `start` was told; extra.env: the user's own; both mode 600
#     /etc/wan-tpu/group-secret       what the workers of a slice know each other by; mode 600
#     /var/lib/wan-tpu                jobs, videos, hub cache, compiled programs, models; the data disk
#
# WAN_TPU_ROOT puts all of it under another folder and leaves the system alone (no packages, no user).
# WAN_TPU_VENV takes this virtual environment instead of making one (an image with one built in).
# WAN_TPU_DATA_DISK names the data disk's device instead of looking for it.
set -euo pipefail

PATH=$PATH:/usr/sbin:/sbin
ROOT=${WAN_TPU_ROOT:-}
OPT=$ROOT/opt/wan-tpu
ETC=$ROOT/etc/wan-tpu
STATE=$ROOT/var/lib/wan-tpu
UNIT_NAME=wan-tpu
UNIT=$ROOT/etc/systemd/system/wan-tpu.service
USER_NAME=wan-tpu
KEEP_RELEASES=3
LISTS=requirements
TORCH=torch==2.13.0
DISK_LABEL=wan-tpu
RELEASE_GB=3

say() { printf '%s\n' "$*"; }
fail() { say "error: $*" >&2; exit 1; }
on_system() { [ -z "$ROOT" ]; }
own() { if on_system; then chown -R "$USER_NAME:$USER_NAME" "$@"; fi; }

# --- install -------------------------------------------------------------------------------------

install_release() {
    local repository=$1 commit=$2 release=$OPT/releases/$2
    [[ $commit =~ ^[0-9a-f]{40}$ ]] || fail "commit is '$commit'; expected all 40 digits"
    mkdir -p "$OPT/releases" "$ETC" "$STATE"
    # A connection that broke may have left the same work running: wait for it.
    exec 9> "$OPT/.lock"
    flock 9
    [ "${3:-}" != data-disk ] || mount_data_disk
    say_free_space
    if [ ! -e "$release/.installed" ]; then
        need_space "$OPT" $((RELEASE_GB * 1000000)) "a release"
        if on_system; then
            install_packages
            make_user
        fi
        check_out "$repository" "$commit" "$release"
        make_venv "$release"
        touch "$release/.installed"
    fi
    point "$OPT/latest" "$release"
    remove_old_releases
    say "installed $commit"
}

free_kb() { df --output=avail -k "$1" | tail -1 | tr -d ' '; }

say_free_space() { say "disk: $(($(free_kb "$STATE") / 1000000)) GB free at $STATE"; }

# Ends when a folder's disk has less than this many kB free.
need_space() {
    local folder=$1 wanted=$2 what=$3 free
    free=$(free_kb "$folder")
    ((free >= wanted)) || fail "$what takes $((wanted / 1000000)) GB and $folder has" \
        "$((free / 1000000)) GB free: remove what is not needed, or take a larger --data-disk"
}

# A new disk gets a file system; one of an earlier slice is taken as it is; any other is left alone.
mount_data_disk() {
    local device found=0
    if mountpoint --quiet "$STATE"; then return; fi
    [ -z "$(ls -A "$STATE")" ] || fail "$STATE has files, which the data disk would hide: move them"
    device=${WAN_TPU_DATA_DISK:-$(find_data_disk)}
    [ -n "$device" ] || fail "none of the disks (lsblk) is labelled $DISK_LABEL, nor is one alone empty"
    blkid --probe "$device" > /dev/null || found=$?
    if [ "$found" = 2 ]; then # nothing is there, which blkid alone says with 2
        say "data disk: a new file system on $device"
        mkfs.ext4 -q -m 0 -L "$DISK_LABEL" "$device"
    fi
    [ "$(blkid --probe --match-tag LABEL --output value "$device")" = "$DISK_LABEL" ] \
        || fail "$device holds something else than wan-tpu's data, and stays as it is"
    if on_system && ! grep -q "^LABEL=$DISK_LABEL " /etc/fstab; then
        say "LABEL=$DISK_LABEL $STATE ext4 defaults,nofail,discard 0 2" >> /etc/fstab
    fi
    mount "$device" "$STATE"
    rmdir "$STATE/lost+found" 2> /dev/null || true
    say "data disk: $device is at $STATE"
}

# A disk of ours, or the only empty one of 10 GB and more: neither mounted nor divided.
find_data_disk() {
    local name type size found=()
    while read -r name; do
        read -r type size < <(lsblk --nodeps --noheadings --bytes --output TYPE,SIZE "$name")
        if [ "$type" != disk ] || ((size < 10 ** 10)); then continue; fi
        # Its name alone: no place where it is mounted, no parts.
        [ "$(lsblk --noheadings --output NAME,MOUNTPOINT "$name" | wc --words)" = 1 ] || continue
        found+=("$name")
        if [ "$(lsblk --nodeps --noheadings --output LABEL "$name")" = "$DISK_LABEL" ]; then
            found=("$name")
            break
        fi
    done < <(lsblk --nodeps --noheadings --paths --output NAME)
    [ ${#found[@]} != 1 ] || say "${found[0]}"
}

install_packages() {
    local missing=()
    command -v git > /dev/null || missing+=(git)
    command -v curl > /dev/null || missing+=(curl)
    python3 -c 'import ensurepip' 2> /dev/null || missing+=(python3-venv)
    [ ${#missing[@]} -gt 0 ] || return 0
    say "system packages: ${missing[*]}"
    # A fresh VM is still updating itself: wait for its lock instead of failing.
    apt-get -qq -o DPkg::Lock::Timeout=600 update
    DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600 \
        install --yes "${missing[@]}" > /dev/null
}

make_user() {
    id "$USER_NAME" > /dev/null 2>&1 \
        || useradd --system --home-dir "$STATE" --shell /usr/sbin/nologin "$USER_NAME"
    install -d -o "$USER_NAME" -g "$USER_NAME" -m 700 "$STATE"
}

check_out() {
    local repository=$1 commit=$2 release=$3 mirror=$OPT/repository.git
    say "source: $commit of $repository"
    [ -d "$mirror" ] || git init --quiet --bare "$mirror"
    git -C "$mirror" fetch --quiet --depth 1 "$repository" "$commit" 2> /dev/null \
        || git -C "$mirror" fetch --quiet "$repository" '+refs/heads/*:refs/heads/*' '+refs/tags/*:refs/tags/*' \
        || fail "cannot fetch from $repository; a private one needs a token in the URL or a public mirror"
    git -C "$mirror" cat-file -e "$commit^{commit}" 2> /dev/null \
        || fail "$repository has no commit $commit; was it pushed?"
    rm -rf "$release"
    mkdir -p "$release"
    git -C "$mirror" archive "$commit" | tar -xf - -C "$release"
}

make_venv() {
    local release=$1 tools=$OPT/tools
    if [ -n "${WAN_TPU_VENV:-}" ]; then
        ln -s "$WAN_TPU_VENV" "$release/.venv"
        return
    fi
    [ -e "$release/$LISTS/slice.txt" ] \
        || fail "this commit has no $LISTS/slice.txt: take the deploy/ of its own checkout for it"
    # uv brings the right Python where the image has an older one, and knows PyTorch's CPU builds.
    [ -x "$tools/bin/uv" ] || python3 -m venv "$tools"
    "$tools/bin/python" -m pip install --quiet --disable-pip-version-check \
        --no-deps --require-hashes --requirement "$release/$LISTS/uv.txt"
    export UV_PYTHON_INSTALL_DIR=$OPT/python UV_CACHE_DIR=$OPT/uv-cache UV_TORCH_BACKEND=cpu
    say "virtual environment"
    "$tools/bin/uv" venv --quiet --clear --python '>=3.11,<3.13' "$release/.venv"
    # The same versions, by the same hashes, as every other worker and the checks have.
    say "packages: $LISTS/slice.txt, $TORCH (CPU build)"
    into_venv --no-deps --require-hashes --requirement "$release/$LISTS/slice.txt"
    into_venv "$TORCH"
    into_venv --no-deps --no-build-isolation --editable "$release"
    "$tools/bin/uv" pip check --quiet --python "$release/.venv"
}

into_venv() { "$tools/bin/uv" pip install --quiet --python "$release/.venv" "$@"; }

remove_old_releases() {
    local old keep
    keep=$(readlink "$OPT/latest" "$OPT/current" "$OPT/previous" "$OPT/training" || true)
    # shellcheck disable=SC2012  # names are commits, sorted by age
    ls -1dt "$OPT"/releases/* | tail -n +$((KEEP_RELEASES + 1)) | while read -r old; do
        if ! grep -qxF "$old" <<< "$keep"; then
            say "removing $(basename "$old")"
            rm -rf "$old"
        fi
    done
}

# A setting as the service reads it: the user's own file comes last, and may have quotes.
setting() {
    cat "$ETC/wan-tpu.env" "$ETC/extra.env" 2> /dev/null \
        | sed -n "s/^$1=[\"']\?\([^\"']*\).*/\1/p" | tail -1
}

# --- start and stop ------------------------------------------------------------------------------

# Takes what to run (latest, previous, or a commit's first digits), whether an extra.env was sent for
# this start (env-file or no-env-file), and WAN_TPU_... assignments.
start_service() {
    local release
    release=$(find_release "$1")
    ! UNIT_NAME=wan-tpu-train is_up || fail "a run is being trained here and has the chips: stop it first"
    [ "$2" = env-file ] || rm -f "$ETC/extra.env"
    shift 2
    write_environment "$@"
    say_free_space
    if [ -L "$OPT/current" ] && [ "$(readlink "$OPT/current")" != "$release" ]; then
        point "$OPT/previous" "$(readlink "$OPT/current")"
    fi
    point "$OPT/current" "$release"
    write_unit
    systemctl daemon-reload
    systemctl enable --quiet wan-tpu
    # It counts as started once its port listens, or not at all: `ready` watches, and says why.
    systemctl restart --no-block wan-tpu
    say "started $(basename "$release")"
}

find_release() {
    local wanted=$1 marks
    case $wanted in
        latest | previous) wanted=$(basename "$(readlink "$OPT/$wanted" || echo "no-$wanted")") ;;
    esac
    marks=("$OPT/releases/$wanted"*/.installed)
    [ ${#marks[@]} -eq 1 ] && [ -e "${marks[0]}" ] \
        || fail "'$wanted' is not one installed commit; there are: $(list_releases)"
    dirname "${marks[0]}"
}

list_releases() {
    local mark
    for mark in "$OPT"/releases/*/.installed; do
        [ ! -e "$mark" ] || printf '%s ' "$(basename "$(dirname "$mark")")"
    done
}

# A model folder in a bucket is copied once; each process then reads its own slices from the disk.
copy_model() {
    local source=$1 folder=$2 bytes here
    mkdir -p "$ROOT$folder"
    bytes=$(gcloud storage du --summarize "$source" | cut -d ' ' -f 1) || bytes=unknown
    if [[ $bytes =~ ^[0-9]+$ ]]; then
        here=$(du --summarize --block-size=1 "$ROOT$folder" | cut -f 1)
        ((bytes <= here)) || need_space "$ROOT$folder" $(((bytes - here) / 1000)) "the rest of it"
    fi
    say "$source -> $folder"
    gcloud storage rsync --recursive --quiet "$source" "$ROOT$folder"
    own "$ROOT$folder"
    say "it is here: $(du -sh "$ROOT$folder" | cut -f1)"
}

# The first digits of a digest: whether the workers have the same secret, and nothing of it.
show_secret() {
    local file=$ETC/group-secret owner=$USER_NAME
    on_system || owner=$(id -un)
    if [ -f "$file" ] && [ "$(stat -c '%a %U' "$file")" = "600 $owner" ]; then
        say "secret=$(sha256sum "$file" | cut -c 1-16)"
    else
        say secret=none
    fi
}

write_environment() {
    local file=$ETC/wan-tpu.env
    [ -f "$ETC/group-secret" ] || fail "there is no $ETC/group-secret: start sends it"
    mkdir -p "$STATE/data" "$STATE/hub" "$STATE/compiled"
    own "$STATE"
    (
        umask 077
        printf '%s\n' "$@" \
            "WAN_TPU_DATA_DIR=$STATE/data" "WAN_TPU_CACHE_DIR=$STATE/compiled" \
            "WAN_TPU_GROUP_SECRET_FILE=$ETC/group-secret" \
            "HF_HOME=$STATE/hub" "HOME=$STATE" PYTHONUNBUFFERED=1 > "$file.new"
    )
    mv "$file.new" "$file"
}

# Atomic: a service that restarts meanwhile finds the old release or the new one.
point() {
    ln -sfn "$2" "$1.new"
    mv -T "$1.new" "$1"
}

# A setting that counts seconds, without its fraction; what is no number is taken as the default.
seconds_of() {
    local value
    value=$(setting "$1")
    if [[ $value =~ ^[0-9]{1,9} ]]; then say "${BASH_REMATCH[0]}"; else say "$2"; fi
}

write_unit() {
    local drain grace
    drain=$(seconds_of WAN_TPU_DRAIN_SECONDS 30)
    grace=$(seconds_of WAN_TPU_STOP_GRACE_SECONDS 30)
    mkdir -p "$(dirname "$UNIT")"
    sed -e "s#^TimeoutStopSec=.*#TimeoutStopSec=$((10#$drain + 10#$grace + 60))#" \
        -e "s#=\(-\?\)/\(opt\|etc\|var/lib\)/wan-tpu#=\1$ROOT/\2/wan-tpu#" \
        "$OPT/current/deploy/wan-tpu.service" > "$UNIT"
}

# Takes `service` where a run that is trained is to be left alone.
stop_service() {
    if [ -e "$UNIT" ]; then
        systemctl disable --quiet wan-tpu
        systemctl stop wan-tpu
    fi
    [ "${1:-}" = service ] || train running stop
    say stopped
}

# Takes a commit, or `running` for the one that trains, and what its training.sh is to do.
train() {
    local release=$OPT/training
    [ "$1" = running ] || release=$(find_release "$1")
    if [ -x "$release/deploy/training.sh" ]; then
        "$release/deploy/training.sh" "${@:2}"
    elif [[ $1 != running || $2 == re* ]]; then # stop and status have nothing to do
        fail "$(basename "$release") cannot train, or nothing was trained here"
    fi
}

# --- watch ---------------------------------------------------------------------------------------

# Asks the service on this worker, on its port or on its socket.
ask() {
    local path=$1 socket
    shift
    socket=$(setting WAN_TPU_UNIX_SOCKET)
    curl --silent ${socket:+--unix-socket "$socket"} "$@" \
        "http://127.0.0.1:$(setting WAN_TPU_PORT)$path"
}

unit_property() { systemctl show "$UNIT_NAME" --property "$1" --value 2> /dev/null || true; }
is_up() { [[ $(unit_property ActiveState) =~ ^(active|(re|de|)activating|reloading)$ ]]; }

say_last_words() {
    say "$1; its last words:"
    journalctl --unit "$UNIT_NAME" --lines 30 --no-pager --output cat || true
    exit 1
}

# Waits for /readyz on this worker; says what is missing whenever that changes.
wait_until_ready() {
    local seconds=$1 start=$SECONDS before='' body='' restarts_at_start restarts
    restarts_at_start=$(unit_property NRestarts)
    while ((SECONDS - start < seconds)); do
        # An older curl has no --fail-with-body: the answer of a 503 says what is missing.
        body=$(ask /readyz --show-error --max-time 10 --write-out ' %{http_code}' 2>&1) || true
        if [[ $body == *' 200' ]]; then
            say "ready after $((SECONDS - start)) s"
            return
        fi
        [ "$(unit_property ActiveState)" != failed ] \
            || say_last_words "the service ended and stays down"
        restarts=$(unit_property NRestarts)
        ((${restarts:-0} - ${restarts_at_start:-0} < 3)) \
            || say_last_words "the service ended and was started again ${restarts} times"
        if [ "$body" != "$before" ]; then
            say "$((SECONDS - start)) s: $(tr '\n' ' ' <<< "${body:0:300}")"
            before=$body
        fi
        sleep 1
    done
    say "not ready after $seconds s; last answer: $body"
    exit 1
}

# KEY=VALUE lines for the table of `status`.
show_status() {
    local python=$OPT/current/.venv/bin/python
    say "unit=$(unit_property ActiveState)/$(unit_property SubState)"
    say "restarts=$(unit_property NRestarts)"
    say "commit=$(basename "$(readlink "$OPT/current" 2> /dev/null || echo none)")"
    say "previous=$(basename "$(readlink "$OPT/previous" 2> /dev/null || echo none)")"
    if [ -x "$python" ]; then
        "$python" - <<< "$CHIPS_PROGRAM" || true
    fi
    say "disk=$(df --output=pcent "$STATE" 2> /dev/null | tail -1 | tr -d ' ')"
    if [ -e "$ETC/wan-tpu.env" ]; then
        say "readyz=$(ask /readyz --max-time 5 | tr -d '\n')"
        say "queue=$(ask /metrics --max-time 5 | sed -n 's/^wan_tpu_queue_length //p')"
    fi
    train running status
}

# tpu-info's own look at this worker: chips by PCI, HBM from the running libtpu.
CHIPS_PROGRAM='
try:
    from tpu_info import device, metrics
except ImportError:
    print("chips=no tpu-info")
else:
    kind, count = device.get_local_chips()
    print(f"chips={count}" + (f" {kind.value.name}" if kind else ""))
    try:
        usage = metrics.get_chip_usage(kind) if kind else []
    except Exception as error:
        usage = []
    if usage:
        used, total = (sum(chip[i] for chip in usage) / 2**30 for i in (1, 2))
        print(f"hbm={used:.1f}/{total:.0f} GiB")
'

# A file or folder as a tar archive, for `fetch` and for compiled programs.
pack() { tar -C "$ROOT$(dirname "$1")" -cf - "$(basename "$1")"; }

# As a part of training.sh it is functions alone.
if [ "${BASH_SOURCE[0]:-$0}" = "$0" ]; then
    verb=${1:-}
    shift || true
    case $verb in
        install) install_release "$@" ;;
        copy-model) copy_model "$@" ;;
        start) start_service "$@" ;;
        stop) stop_service "$@" ;;
        secret) show_secret ;;
        ready) wait_until_ready "$@" ;;
        status) show_status ;;
        pack) pack "$@" ;;
        train) train "$@" ;;
        *) fail "unknown verb '$verb'" ;;
    esac < /dev/null
    # Without this line the laptop takes 0 for a connection that broke: see Command.end_mark.
    say 'wan-tpu-worker: done' >&2
    exit
fi
