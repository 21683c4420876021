#!/usr/bin/env bash
# What deploy/wan-tpu-deploy train does on one worker, out of the release that trains:
#
#     sudo bash -s -- train COMMIT VERB ... < deploy/worker.sh      # runs its deploy/training.sh VERB ...
#
#     /opt/wan-tpu/training              the release that trains
#     /etc/wan-tpu/training.env          what the run was told; mode 600
#     /var/lib/wan-tpu/training/RUN      its config.toml and its data
#     /var/lib/wan-tpu/runs/RUN          its folder, where none is named
#     /var/lib/wan-tpu/buckets/BUCKET    the bucket of its folder, mounted
#
# Everything may run twice.
set -euo pipefail
# shellcheck source=worker.sh
. "$(dirname "${BASH_SOURCE[0]}")/worker.sh"

RELEASE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
UNIT_NAME=wan-tpu-train
FAILURES=$OPT/training-failures
MAX_FAILURES=5
FAILURES_SECONDS=21600

# What the run was told when it was last started.
told() { sed -n "s/^WAN_TPU_TRAIN_$1=//p" "$ETC/training.env" 2> /dev/null | tail -1; }

as_user() { if on_system; then sudo --user="$USER_NAME" "$@"; else "$@"; fi; }

wan_tpu() {
    (
        cd "$RELEASE"
        export HOME=$STATE HF_HOME=$STATE/hub JAX_PLATFORMS=cpu # the chips are the run's
        as_user "$RELEASE/.venv/bin/python" -m wan_tpu.cli.main "$@"
    )
}

# --- before it starts ----------------------------------------------------------------------------

# Takes the run, its folder, the bucket that the folder is in or `-`, and on a slice of several workers
# `leave` or `find`: worker 0 leaves a mark beside the folder, and the others must find it there.
prepare() {
    local run=$1 folder=$2 bucket=$3 mark
    mark=$(dirname "$folder")/.wan-tpu-$run
    ! UNIT_NAME=wan-tpu is_up || fail "the service runs here and has the chips: stop it first"
    if is_up && [ "$(told RUN)" != "$run" ]; then
        fail "$(told RUN) is being trained here: stop it first"
    fi
    mkdir -p "$STATE/training/$run" "$STATE/hub" "$STATE/compiled"
    own "$STATE/training" "$STATE/hub" "$STATE/compiled"
    [ "$bucket" = - ] || mount_bucket "$bucket"
    mkdir -p "$(dirname "$folder")"
    [ "$bucket" != - ] || [[ $folder != "$STATE"/* ]] || own "$(dirname "$folder")"
    case ${4:-} in
        leave) touch "$mark" ;;
        find)
            [ -e "$mark" ] || fail "$(dirname "$folder") is not the folder that worker 0 has: every" \
                "worker needs the same one, such as a bucket (--output gs://BUCKET/FOLDER)"
            ;;
    esac
    say_free_space
    say "ready for $run"
}

# By /etc/fstab, so that it is there again after a restart of the machine, and before the run. Nothing is
# kept of names that others made: a worker must see the checkpoint that worker 0 has just begun.
mount_bucket() {
    local bucket=$1 folder=$STATE/buckets/$1 options
    mkdir -p "$folder"
    if mountpoint --quiet "$folder"; then return; fi
    if ! command -v gcsfuse > /dev/null && on_system; then
        apt-get -qq -o DPkg::Lock::Timeout=600 install --yes gcsfuse > /dev/null 2>&1 || true
    fi
    command -v gcsfuse > /dev/null || fail "there is no gcsfuse, which mounts buckets: install it on every" \
        "worker, as cloud.google.com/storage/docs/cloud-storage-fuse/install says"
    options=rw,_netdev,nofail,allow_other,implicit_dirs,metadata_cache_ttl_secs=0
    options+=,uid=$(id -u "$USER_NAME" 2> /dev/null || id -u),gid=$(id -g "$USER_NAME" 2> /dev/null || id -g)
    options+=,file_mode=600,dir_mode=700
    if on_system && ! grep -q " $folder " /etc/fstab; then
        say "$bucket $folder gcsfuse $options 0 0" >> /etc/fstab
        systemctl daemon-reload
    fi
    mount -t gcsfuse -o "$options" "$bucket" "$folder"
    say "bucket: $bucket is at $folder"
}

# --- start and stop ------------------------------------------------------------------------------

# Takes the run, its folder, whether an extra.env was sent (env-file or no-env-file), and what the command
# is told besides.
start_training() {
    local run=$1 folder=$2 extra=$3 unit=$ROOT/etc/systemd/system/$UNIT_NAME.service file=$ETC/training.env
    shift 3
    [ "$extra" = env-file ] || rm -f "$ETC/extra.env"
    rm -f "$FAILURES" "$(dirname "$folder")/.wan-tpu-$run"
    (
        umask 077
        printf '%s\n' "WAN_TPU_TRAIN_RUN=$run" "WAN_TPU_TRAIN_FOLDER=$folder" \
            "WAN_TPU_TRAIN_CONFIG=$STATE/training/$run/config.toml" "WAN_TPU_TRAIN_WORDS=$*" \
            "WAN_TPU_GROUP_SECRET_FILE=$ETC/group-secret" "XDG_CACHE_HOME=$STATE/cache" \
            "HF_HOME=$STATE/hub" "HOME=$STATE" PYTHONUNBUFFERED=1 > "$file.new"
        [ -f "$ETC/group-secret" ] || sed -i '/GROUP_SECRET/d' "$file.new" # one worker needs none
    )
    mv "$file.new" "$file"
    mkdir -p "$STATE/cache" "$(dirname "$unit")"
    own "$STATE/cache"
    point "$OPT/training" "$RELEASE"
    sed -e "s#^RequiresMountsFor=.*#& $(dirname "$folder")#" \
        -e "s#\([=+ ]-\?\)/\(opt\|etc\|var/lib\)/wan-tpu#\1$ROOT/\2/wan-tpu#g" \
        "$RELEASE/deploy/$UNIT_NAME.service" > "$unit"
    systemctl daemon-reload
    systemctl enable --quiet "$UNIT_NAME"
    systemctl restart --no-block "$UNIT_NAME"
    say "started $(basename "$RELEASE")"
}

stop_training() {
    systemctl disable --quiet "$UNIT_NAME"
    systemctl stop "$UNIT_NAME"
    say "stopped $(told RUN)"
}

# How often it failed in the last hours, and did not end otherwise since.
count_failures() {
    local since=$(($(date +%s) - FAILURES_SECONDS))
    { cat "$FAILURES" 2> /dev/null || true; } \
        | awk -v since="$since" '$1 >= since { n++ } END { print n + 0 }'
}

# For the unit: whether it may start, and how it ended.
may_start() {
    local count
    count=$(count_failures)
    ((count < MAX_FAILURES)) || fail "it failed $count times and is left alone; its log says why"
}

note_end() {
    case ${EXIT_STATUS:-} in
        0 | 75) rm -f "$FAILURES" ;;
        *) [ "${SERVICE_RESULT:-}" = success ] || date +%s >> "$FAILURES" ;;
    esac
}

# --- watch ---------------------------------------------------------------------------------------

progress() { wan_tpu train status "$(told FOLDER)" --json 2> /dev/null | tr -d '\n' || true; }

# A number of the status, without its fraction; 0 where there is none yet.
number() { if [[ $2 =~ \"$1\":\ *([0-9]+) ]]; then say "${BASH_REMATCH[1]}"; else say 0; fi; }

show_training() {
    say "run=$(told RUN)"
    say "trainer=$(unit_property ActiveState)/$(unit_property SubState)"
    say "failures=$(count_failures)"
    say "training=$(progress)"
}

# Waits for the first step since this start, or for the end; says what the run does meanwhile.
wait_until_it_trains() {
    local seconds=$1 start=$SECONDS began before='' now has_ended
    began=$(stat --format %Y "$ETC/training.env") # written by the start
    while ((SECONDS - start < seconds)); do
        has_ended=no
        is_up || has_ended=yes # before the progress, which is its last word then
        now=$(progress)
        if [[ $now =~ \"state\":\ *\"finished\" ]] || (($(number last_line "$now") >= began)); then
            say "step $(number step "$now") after $((SECONDS - start)) s"
            return
        fi
        [ "$has_ended" = no ] || say_last_words "the run ended and stays down"
        (($(count_failures) < 3)) \
            || say_last_words "the run ended and was started again three times"
        now=$(sed -n 's/.*"stage": *"\([^"]*\)".*/\1/p' <<< "$now")
        [ "$now" = "$before" ] || say "$((SECONDS - start)) s: $now"
        before=$now
        sleep 1
    done
    say "no step after $seconds s"
    exit 1
}

# What was learnt, as a tar archive: an adapter, or a model's folder. From the last checkpoint, on the CPU.
pack_result() {
    local run=$1 folder=$STATE/runs/$1 results=$STATE/results name=$1.safetensors
    [ "$(told RUN)" != "$run" ] || folder=$(told FOLDER)
    [ -e "$folder/run.json" ] || fail "there is no run in $folder"
    ! grep -q '"kind": *"full"' "$folder/run.json" || name=$run
    mkdir -p "$results"
    own "$results"
    rm -rf "${results:?}/$name"
    wan_tpu train export "$folder" -o "$results/$name" >&2
    tar -C "$results" -cf - "$name"
}

case ${1:-} in
    prepare) shift; prepare "$@" ;;
    start) shift; start_training "$@" ;;
    stop) stop_training ;;
    may-start) may_start ;;
    note-end) note_end ;;
    ready) shift; wait_until_it_trains "$@" ;;
    status) show_training ;;
    result) shift; pack_result "$@" ;;
    *) fail "unknown verb 'train ${1:-}'" ;;
esac
