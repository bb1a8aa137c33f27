#!/usr/bin/env bash
# Builds the image, runs it as compose.yaml says, and tells how it is: the make targets' logic.
set -eu

PULLED=debian:trixie-slim
MADE=reef-base:trixie
MADE_FOR_BUILDS=reef-build-base:trixie
PULL_S=120
READY_S=120
LOG_LINES=20
OLDEST_COMPOSE=1.29

usage() {
    cat <<END
Usage: scripts/appliance.sh image | sbom | up [NAME...] | attach | down | logs | status | doctor |
                            bench-image

  image   builds the image, on $PULLED or, where no registry answers, on a base made
          from Debian's archive by scripts/base-image.sh
  sbom    writes what is in it to build/sbom.cdx.json, its licences to build/licenses/
  up      builds it, checks settings and ports, starts it with the Edge TPUs that are there now,
          waits until it is ready and says how to use it. The variables named are kept in .env
  attach  starts it in the foreground; for reef.service
  down    stops it and removes the container; models and logs stay
  logs    shows its log and follows it, until Ctrl-C
  status  says whether it runs, on which devices, and what is wrong
  doctor  says what this computer lacks, and why an Edge TPU doesn't work
  bench-image
          builds the image of the benchmark, on the same base

It reads what docker compose reads: .env.example explains every variable. Where this computer has
an Edge TPU, EDGETPU is 'required' unless it is set: the build then stops without its files.
END
}

main() {
    local command=${1:---help}
    dotenv='' address=''
    cd "$(dirname "$0")/.."
    # shellcheck source=scripts/lib/compose.sh
    . scripts/lib/compose.sh
    # shellcheck source=scripts/lib/checks.sh
    . scripts/lib/checks.sh
    # shellcheck source=scripts/lib/address.sh
    . scripts/lib/address.sh
    # shellcheck source=scripts/lib/doctor.sh
    . scripts/lib/doctor.sh
    case $command in
    --help | -h) usage ;;
    doctor) do_doctor ;;
    image | sbom | up | attach | down | logs | status | bench-image)
        need_docker
        read_env "$command"
        "do_${command//-/_}" "${@:2}"
        ;;
    *) die "no such command: $command; see --help" ;;
    esac
}

# .env, and what only this computer has: a fresh clone with a kept .env has it not yet.
read_env() {
    dotenv=$(dotenv_read .env) || [[ $1 =~ ^(down|logs)$ ]] || exit 1
    [[ $(setting COMPOSE_FILE '') != *compose.devices.yaml* ]] || [ -e compose.devices.yaml ] ||
        scripts/devices.sh compose
    declare_volumes
}

do_image() {
    local image before tpu
    local -a again=()
    image=$(setting REEF_IMAGE reef:local)
    tpu=$(edge_tpu)
    choose_base
    if [ -z "$(setting EDGETPU '')" ] && [ -n "$tpu" ]; then
        export EDGETPU=required
        say "this computer has an Edge TPU ($tpu), so its files are required"
    fi
    before=$(docker image inspect --format '{{index .Config.Labels "reef.edgetpu"}}' "$image" \
        2>/dev/null || true)
    # A builder remembers that a site couldn't be reached; another value makes it ask again.
    [[ $before != *"could not be reached"* ]] || again=(--build-arg "EDGETPU_TRY=$(date +%s)")
    say "building $image"
    compose build --force-rm --build-arg "REVISION=$(of_commit describe --always --abbrev=40 --exclude='*' --dirty)" \
        --build-arg "CREATED=$(of_commit log -1 --format=%cI)" "${again[@]}" reef ||
        die "the build failed; the lines above say why${tpu:+. EDGETPU=none builds for the CPU alone}"
    label "$image"
}

do_bench_image() {
    local image
    image=$(setting BENCH_IMAGE reef-bench:local)
    choose_base
    say "building $image"
    compose --profile bench build --force-rm \
        --build-arg "REVISION=$(of_commit describe --always --abbrev=40 --exclude='*' --dirty)" bench ||
        die "the build failed; the lines above say why"
    say "$image, $(($(docker image inspect --format '{{.Size}}' "$image") / 1000000)) MB"
}

# What git says of the sources; nothing where they came without it.
of_commit() { git "$@" 2>/dev/null || true; }

# Says in a label what the image has for the Edge TPU, or what it lacks and why.
label() {
    local image=$1 what
    what=$(docker run --rm --network none --entrypoint python3 "$image" -c '
import json
record = json.load(open("/opt/reef/image.json"))
print("; ".join(filter(None, [", ".join(record["edgetpu"]), *record["notes"]])))')
    echo "FROM $image" | docker build --quiet --force-rm --label "reef.edgetpu=$what" --tag "$image" - \
        >/dev/null 2>&1 || die "$image could not be labelled"
    say "$image, $(($(docker image inspect --format '{{.Size}}' "$image") / 1000000)) MB: $what"
}

do_sbom() {
    local image
    image=$(setting REEF_IMAGE reef:local)
    have "$image" || do_image
    mkdir -p build
    rm -rf build/licenses
    docker run --rm --network none --entrypoint tar "$image" \
        --create --dereference --directory /opt/reef sbom.cdx.json licenses |
        tar --extract --directory build || die "$image has no bill of materials; build it anew"
    say "build/sbom.cdx.json and the licences of $(find build/licenses -mindepth 1 -maxdepth 1 | wc -l) packages"
}

do_up() {
    need_curl
    check_names "$@"
    check_values
    check_folders
    check_volumes
    scripts/devices.sh compose
    check_files
    choose_base
    check_ports
    do_image
    check_start
    pull_others
    keep "$@"
    say "starting"
    compose up --detach --no-build || die "it could not be started; the lines above say why"
    wait_until_ready
    describe
}

do_down() { compose down; }

# Puts what was chosen on make's command line into .env, where it holds until it is changed.
keep() {
    local name text before
    before=$([ ! -e .env ] || cat .env)
    text=$before
    for name in "$@"; do
        [ "${!name-}" != "$(dotenv_get "$name" "$dotenv")" ] || continue
        text=$(dotenv_with "$text" "$name" "${!name-}")
        say "$name is kept in .env"
    done
    if [ "$text" != "$before" ]; then
        [ -e .env ] || (umask 077 && : >.env) # it may hold a key
        [ "$(id -u)" -ne 0 ] || chown --reference=. .env
        printf '%s\n' "$text" >.env
    fi
    unset -v "$@" # from here on .env has them
    dotenv=$(dotenv_read .env)
    declare_volumes
}

# For reef.service: in the foreground, with the devices of now, and nothing before the log's lines.
do_attach() {
    check_names
    check_folders
    check_volumes
    scripts/devices.sh compose
    check_files
    docker image inspect "$(setting REEF_IMAGE reef:local)" >/dev/null 2>&1 || do_image
    local id since
    since=$(date +%s)
    compose up --detach --no-build
    id=$(container)
    # Its log as it is: `compose up` in the foreground puts an escape before every line, and the
    # journal then shows none of them. It ends when the container does, which Docker starts again.
    while docker logs --follow --since "$since" "$id" 2>&1 && is_kept "$id"; do
        since=$(docker inspect --format '{{.State.StartedAt}}' "$id")
    done
}

# Whether it runs, or Docker is about to start it again.
is_kept() {
    case $(docker inspect --format '{{.State.Status}}' "$1" 2>/dev/null) in
    running | restarting) return 0 ;;
    *) return 1 ;;
    esac
}

do_logs() {
    need_container
    compose logs --follow --tail 100 reef
}

do_status() {
    local id
    need_container
    id=$(container)
    compose ps
    [ "$(docker inspect --format '{{.State.Running}}' "$id")" = true ] ||
        fail "it does not run; 'make up' starts it"
    address=$(published) || fail "its port is not published"
    ask /ready >/dev/null || fail "it is not ready: $(reason "$id")"
    describe
}

# ------------------------------------------------------------------ the base

choose_base() {
    local base
    [ -z "${base_is_chosen-}" ] || return 0
    base_is_chosen=yes
    base=$(setting REEF_BASE '')
    if [ -n "$base" ]; then
        REEF_BASE=$base
        REEF_BUILD_BASE=$(setting REEF_BUILD_BASE "$base")
    elif have "$PULLED" || pull; then
        REEF_BASE=$PULLED
        REEF_BUILD_BASE=$PULLED
    else
        say "no registry answers, so the base is made from Debian's archive"
        { have "$MADE" && have "$MADE_FOR_BUILDS"; } || scripts/base-image.sh
        REEF_BASE=$MADE
        REEF_BUILD_BASE=$MADE_FOR_BUILDS
    fi
    export REEF_BASE REEF_BUILD_BASE
    say "the base is $REEF_BASE"
}

have() { docker image inspect "$1" >/dev/null 2>&1; }

pull() {
    say "asking the registry for $PULLED"
    timeout "$PULL_S" docker pull --quiet "$PULLED" >/dev/null 2>&1
}

# ------------------------------------------------------------------ the Edge TPU

# Where this computer has an Edge TPU; nothing when it has none.
edge_tpu() { scripts/devices.sh list | paste --serial --delimiters ' '; }

# ------------------------------------------------------------------ the container

container() { compose ps --all --quiet reef 2>/dev/null | head -n 1; }

need_container() {
    [ -n "$(container)" ] || die "there is no container; 'make up' makes and starts it"
}

wait_until_ready() {
    local id restarts deadline now told=''
    id=$(container)
    address=$(published) || fail "its port is not published"
    restarts=$(docker inspect --format '{{.RestartCount}}' "$id")
    deadline=$((SECONDS + READY_S))
    until ask /ready >/dev/null; do
        now=$(docker inspect --format '{{.State.Status}} {{.RestartCount}}' "$id")
        [ "$now" = "running $restarts" ] || {
            compose stop >/dev/null 2>&1 # or it would be started again and again
            fail "it ended at once: $(docker logs --tail 1 "$id" 2>&1)"
        }
        now=$(reason "$id")
        [ "$SECONDS" -lt "$deadline" ] || fail "not ready after $READY_S s: $now"
        [ "$now" = "$told" ] || say "waiting: $now"
        told=$now
        sleep 0.3
    done
}

# Why it is not ready, in its own words.
reason() {
    local said
    said=$(docker exec --interactive "$1" /opt/reef/venv/bin/python - reason <scripts/status.py \
        2>/dev/null) || said="it is being started"
    printf '%s' "${said:-nothing answers at $address}"
}

describe() {
    local id key
    id=$(container)
    key=$(key_option "$id")
    docker exec --interactive "$id" /opt/reef/venv/bin/python - <scripts/status.py
    printf '\nReef is ready: %s\n\n' "$address"
    printf '  curl %s%s-F image=@models/selftest_person.jpg %s/predict\n' \
        "$(curl_options)" "$key" "$address"
    printf "\n'make logs' shows its log, 'make status' how it is, 'make down' stops it.\n"
    [ -n "$key" ] || ! is_open ||
        say "other computers reach it, and it has no key; set one: make up REEF_API_KEY=\$(openssl rand -hex 24)"
}

# What makes the shell bring the API key, where one is set; the key itself is not printed.
key_option() {
    local file
    # shellcheck disable=SC2016 # the user's shell is to fill these in
    if [ -n "${REEF_API_KEY-}" ]; then
        printf -- '-H "X-API-Key: %s" ' '$REEF_API_KEY'
    elif tr -d '\r' 2>/dev/null <.env | grep --quiet '^REEF_API_KEY=[A-Za-z0-9._~+/=-]\{1,\}$'; then
        file=.env
        ! grep --quiet $'\r' .env || file=".env | tr -d '\r'" # as Windows ends lines
        printf -- '-H "X-API-Key: %s" ' "\$(sed -n 's/^REEF_API_KEY=//p' $file)"
    elif docker exec "$1" /opt/reef/venv/bin/python -c \
        'import sys; from app import settings; sys.exit(not settings.load().keys)'; then
        printf -- '-H "X-API-Key: YOUR_KEY" '
    fi
}

fail() {
    say "$1"
    say "the last lines of its log:"
    compose logs --no-color --tail "$LOG_LINES" reef >&2 || true
    exit 1
}

# ------------------------------------------------------------------ Docker

need_docker() {
    local why
    command -v docker >/dev/null ||
        die "there is no Docker here; install it, or serve without it: make run"
    why=$(docker version --format '{{.Server.Version}}' 2>&1) || case $why in
    *"permission denied"*)
        die "this user may not use Docker; run: sudo usermod --append --groups docker $(id -un), and log in again, or begin the command with sudo"
        ;;
    *) die "no Docker engine answers ($(tail -n 1 <<<"$why")); without one: make run" ;;
    esac
    docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null ||
        die "Docker has no compose here; install its package docker-compose, or: make run"
    why=$(compose version --short)
    printf '%s\n' "$OLDEST_COMPOSE" "${why#v}" | sort --version-sort --check 2>/dev/null ||
        die "Compose $why is too old; Reef needs $OLDEST_COMPOSE or newer"
}

need_curl() {
    command -v curl >/dev/null ||
        die "there is no curl here, by which the server is asked whether it is ready; install it"
}

compose() {
    if docker compose version >/dev/null 2>&1; then docker compose "$@"; else docker-compose "$@"; fi
}

# A variable as compose sees it: from the environment, else from .env, and where that is empty the
# default.
setting() {
    local value
    value=${!1-$(dotenv_get "$1" "$dotenv")}
    printf '%s' "${value:-$2}"
}

say() { printf 'reef: %s\n' "$*" >&2; }

die() {
    say "$*"
    exit 1
}

main "$@"
