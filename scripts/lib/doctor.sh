# shellcheck shell=bash
# What this computer lacks, in the form of `reef doctor`, which has the last word about Edge TPUs.
# Sourced by appliance.sh.

DISK_MB=2000
MEMORY_MB=500

# Exit status: 0 all is well, 10 there are warnings, 20 there are errors.
do_doctor() {
    local program
    worst=0
    for program in git curl; do
        command -v "$program" >/dev/null || finding ERROR "there is no $program here; install it"
    done
    examine_room "$(awk '/^MemAvailable:/ { print int($2 / 1024) }' /proc/meminfo)" "$MEMORY_MB" 'of memory'
    if ! tell ERROR dotenv_read .env; then
        dotenv=''
    elif dotenv=$(dotenv_read .env); then
        tell ERROR check_names || true
        tell ERROR check_folders || true
    fi
    if tell WARNING need_docker; then
        finding OK "Docker $(docker version --format '{{.Server.Version}}') and Compose $(compose version --short)"
        examine_room "$(free_for_docker)" "$DISK_MB" 'of disk for images'
        examine_in_container
    else
        examine_without_container
    fi
    return "$worst"
}

finding() {
    printf '%-8s%s\n' "$1" "$2"
    case $1 in
    ERROR) worst=20 ;;
    WARNING) [ "$worst" -gt 10 ] || worst=10 ;;
    esac
}

# Runs a check that would end the program, and says what it would.
tell() {
    local level=$1 told
    told=$("${@:2}" 2>&1 >/dev/null) && return
    while read -r told; do finding "$level" "${told#reef: }"; done <<<"$told"
    return 1
}

examine_room() {
    [ -z "$1" ] || [ "$1" -ge "$2" ] || finding WARNING "$1 MB $3 are free; Reef needs about $2"
}

# Nothing where the engine is on another computer.
free_for_docker() {
    df --portability --block-size=1M "$(docker info --format '{{.DockerRootDir}}')" 2>/dev/null |
        awk 'NR == 2 { print $4 }'
}

examine_in_container() {
    local id said status=0
    id=$(container)
    if [ -n "$id" ] && [ "$(docker inspect --format '{{.State.Running}}' "$id")" = true ]; then
        docker exec "$id" reef doctor || status=$?
    elif have "$(setting REEF_IMAGE reef:local)"; then
        { said=$(compose run --rm --no-deps -T reef doctor 2>&1 >&3) || status=$?; } 3>&1
        [ "$status" -eq 0 ] || without_progress <<<"$said" >&2 # such as a setting that is wrong
    else
        finding OK "there is no image yet; make up builds it, and then this says more"
    fi
    [ "$status" -le "$worst" ] || worst=$status
}

examine_without_container() {
    local status=0
    if [ -x .venv/bin/python ]; then
        .venv/bin/python -m app doctor || status=$?
    else
        finding OK "make run serves without Docker; once it has run, this says more"
    fi
    [ "$status" -le "$worst" ] || worst=$status
}
