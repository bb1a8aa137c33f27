# shellcheck shell=bash
# What is checked before anything is built, and before anything that serves is stopped. Sourced by
# appliance.sh.

VOLUMES=compose.volumes.yaml
VOLUMES_MARK='# Written by scripts/appliance.sh, anew each time: the volumes that .env names.'
FROM_HERE=(REEF_MODELS REEF_LOGS REEF_TLS_FILES) # each a folder of this computer, or a volume
OWN_VOLUMES='^(models|logs|tls|caddy)?$'

# ------------------------------------------------------------------ names

# What Compose would drop without a word: it passes on what compose.yaml names, so a key that is
# misspelt would be none. Those of the shell may be for another program, so they are not refused.
check_names() {
    local name others=''
    while IFS='=' read -r name _; do
        [[ $name != REEF_* ]] || is_variable "$name" || die "$name in .env: $(instead_of "$name")"
    done <<<"$dotenv"
    for name in "$@"; do
        is_variable "$name" || die "$name: $(instead_of "$name")"
        [[ ${!name-} != *[$'\'\n\r']* ]] || die "$name can't be kept in .env: it has a quote or a line end"
    done
    for name in $(compgen -e REEF_); do
        if ! is_variable "$name"; then
            [[ $name == REEF_REQUIRE_* ]] || say "$name of the shell is left out; $(instead_of "$name")"
        elif [[ " $* " != *" $name "* ]] && [ "${!name}" != "$(dotenv_get "$name" "$dotenv")" ]; then
            others+=" $name"
        fi
    done
    [ -z "$others" ] || say "of the shell, for this time only:$others"
}

is_variable() { grep --quiet "^#\{0,1\}$1=" .env.example; }

instead_of() {
    case $1 in
    REEF_HOST) echo "in the container it is fixed, and REEF_BIND names the address that is opened" ;;
    REEF_MODELS_DIR) echo "in the container it is /models, and REEF_MODELS names the folder behind it" ;;
    REEF_RUN_DIR) echo "in the container it is fixed" ;;
    *) echo "no such setting; .env.example lists them" ;;
    esac
}

# ------------------------------------------------------------------ folders, volumes and files

# Docker makes a folder that is missing, as root's, and the server would find nothing there.
check_folders() {
    local name folder
    [[ ${DOCKER_HOST:-unix://} == unix://* ]] || return 0 # they are on another computer
    for name in "${FROM_HERE[@]}"; do
        folder=$(setting "$name" '')
        ! is_path "$folder" || [ -d "${folder/#\~\//$HOME/}" ] ||
            die "$name: there is no folder $folder; create it, or correct its name"
    done
}

check_volumes() {
    local name volume
    for name in "${FROM_HERE[@]}"; do
        volume=$(setting "$name" '')
        is_path "$volume" || [[ $volume =~ $OWN_VOLUMES ]] ||
            docker volume inspect "$volume" >/dev/null 2>&1 ||
            die "$name: there is no volume $volume; 'docker volume create $volume' makes it, and a folder has a / in it"
    done
}

is_path() { [[ $1 == */* || $1 == . || $1 == .. || $1 == "~" ]]; }

# Compose mounts only volumes that a file declares, and compose.yaml can't know their names.
declare_volumes() {
    local name volume files text=''
    for name in "${FROM_HERE[@]}"; do
        volume=$(setting "$name" '')
        is_path "$volume" || [[ $volume =~ $OWN_VOLUMES ]] ||
            text+="  $volume: {external: true}"$'\n'
    done
    rm -f "$VOLUMES"
    [ -n "$text" ] || return 0
    printf '%s\nvolumes:\n%s' "$VOLUMES_MARK" "$text" >"$VOLUMES"
    files=$(setting COMPOSE_FILE "$(compose_files)")
    export COMPOSE_FILE="${files%":$VOLUMES"}:$VOLUMES"
}

check_files() {
    compose config --quiet || die "a setting in .env or the environment is wrong; the lines above say which"
    # Caddy is root without a right, so it reads what everybody may read.
    ! serves_tls || [ -n "$(find deploy/Caddyfile -perm -o+r)" ] || chmod go+r deploy/Caddyfile
}

# ------------------------------------------------------------------ ports and limits

# Compose would say it in words of its own, only once what serves is stopped, or not at all.
check_values() {
    local name value
    for name in REEF_PORT REEF_TLS_PORT; do
        value=$(setting "$name" 5000)
        [[ $value =~ ^[0-9]{1,5}$ && 10#$value -ge 1 && 10#$value -le 65535 ]] ||
            die "$name: takes a whole number from 1 to 65535, not '$value'"
    done
    value=$(setting REEF_BIND 127.0.0.1)
    [[ $value =~ ^[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+$ || $value == *:* ]] ||
        die "REEF_BIND: takes an address of this computer, as 192.168.1.5, or 0.0.0.0 for all, not '$value'"
    value=$(setting REEF_MEMORY 3456m)
    [[ $value =~ ^[0-9]+(\.[0-9]+)?[bkmgBKMG]?[bB]?$ ]] ||
        die "REEF_MEMORY: takes a number of megabytes or gigabytes, as 2048m or 2g, not '$value'"
    value=$(setting REEF_STOP_GRACE 30s)
    [[ $value =~ ^([0-9]+(ms|s|m|h))+$ ]] ||
        die "REEF_STOP_GRACE: takes a time, as 30s or 1m30s, not '$value'"
}

# Whether the engine can open them; of those that this project has already, only the address.
check_ports() {
    local address port held said other status
    held=$(for id in $(compose ps --quiet 2>/dev/null); do docker port "$id" || true; done | sed 's/.*-> //')
    while read -r address port; do
        ! grep --quiet --fixed-strings --line-regexp -- "$address:$port" <<<"$held" || continue
        ! grep --quiet ":$port\$" <<<"$held" || port=
        status=0
        said=$(docker run --rm --publish "$address:$port:1" --entrypoint true "$REEF_BASE" 2>&1) || status=$?
        [ "$status" -eq 125 ] || continue # the engine's own failure
        said=$(sed 's/\.$//; /^$/d; /docker run --help/d' <<<"$said" | tail -n 1)
        case $said in
        *'cannot assign requested address'*)
            die "this computer has no address $address; correct REEF_BIND, 0.0.0.0 is all that it has"
            ;;
        esac
        other=PORT=5001
        [ "$port" != "$(setting REEF_TLS_PORT 443)" ] || other=REEF_TLS_PORT=8443
        die "port ${port:-'of any number'} of $address can't be opened (${said##*: }); another one: make up $other"
    done < <(compose config | ports_of)
}

# Address and port of this computer for each that `compose config` has: 1.29 writes them as one
# text, 2 in lines of their own.
ports_of() {
    awk -v OFS=' ' '{ gsub(/"/, "") }
        $1 == "-" && $2 ~ /^[^\/]*:[0-9]+:[0-9]+(\/tcp)?$/ {
            address = port = $2
            sub(/:[0-9]+:[0-9]+(\/tcp)?$/, "", address)
            sub(/:[0-9]+(\/tcp)?$/, "", port); sub(/.*:/, "", port)
            print address, port; address = ""
        }
        { field = $1 == "-" ? 2 : 1 }
        $field == "host_ip:" { address = $(field + 1); if (address ~ /:/) address = "[" address "]" }
        $field == "published:" { print (address ? address : "0.0.0.0"), $(field + 1); address = "" }'
}

# ------------------------------------------------------------------ the start

# The settings, by the server's own rules, in a container like the one that is to serve.
check_start() {
    local said
    said=$(compose run --rm --no-deps -T reef check 2>&1) || {
        without_progress <<<"$said" >&2
        die "it would not start; what served before still does"
    }
}

# What Compose says of its own work, and 1.29 of an exit status, is left out.
without_progress() {
    grep --invert-match '^Creating \|^ *\(Network\|Volume\|Container\) \|^[0-9]*$' || true
}

pull_others() {
    local image said
    for image in $(compose config | sed -n 's/^ *image: //p'); do
        have "$image" || [ "$image" = "$(setting BENCH_IMAGE reef-bench:local)" ] || {
            say "pulling $image"
            said=$(docker pull --quiet "$image" 2>&1) ||
                die "$image could not be pulled: $(tail -n 1 <<<"$said"); what served before still does (REEF_CADDY names another image for TLS)"
        }
    done
}
