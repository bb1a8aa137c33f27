#!/usr/bin/env bash
# `reef healthcheck` in the container: Docker asks every few seconds, for years, and bash takes a
# hundredth of the time that Python needs to import Reef's settings.
set -eu

ASK_S=5

usage() {
    cat <<END
Usage: scripts/healthcheck.sh [--help]

Asks /ready of the server that the settings of this environment make, and prints the answer. Exit
status 0 when it is ready, else 1.
END
}

main() {
    case ${1-} in
    '') ;;
    --help | -h) usage && exit ;;
    *) die "no such option: $1; see --help" >&2 ;;
    esac
    local host=${REEF_HOST:-127.0.0.1} port=${REEF_PORT:-5000} config=${REEF_CONFIG:-reef.yaml}
    # What is not plain, or may stand in a file of settings, is read by the server's own rules.
    if [[ ! $host =~ ^[0-9A-Za-z.:-]+$ || ! $port =~ ^[0-9]+$ ]] ||
        { [ -e "$config" ] && grep --quiet 'host\|port' "$config"; }; then
        exec "${PYTHON:-/opt/reef/venv/bin/python}" -m app healthcheck
    fi
    [[ $host != 0.0.0.0 && $host != :: ]] || host=127.0.0.1 # `::` takes IPv4 too
    ask "$host" "$port"
}

ask() {
    local line status='' body=''
    { exec 3<>"/dev/tcp/$1/$2"; } 2>/dev/null || die "http://$1:$2/ready: $(why_not "$1" "$2")"
    printf 'GET /ready HTTP/1.1\r\nHost: reef\r\nConnection: close\r\n\r\n' >&3
    IFS= read -r -t "$ASK_S" -u 3 status || die "nothing answers at $1 port $2 within $ASK_S s"
    while IFS= read -r -t "$ASK_S" -u 3 line && [ "$line" != $'\r' ]; do :; done
    IFS= read -r -d '' -t "$ASK_S" -u 3 body || [ -n "$body" ] || die "what answers at $1 port $2 is not Reef"
    printf '%s\n' "$body"
    [[ $status == 'HTTP/1.1 200 '* && $body == '{"ready":true,'*'}' ]]
}

# The kernel's last words about a connection.
why_not() { { : 3<>"/dev/tcp/$1/$2"; } 2>&1 | tail -n 1 | sed 's/.*: //'; }

die() {
    printf '%s\n' "$*"
    exit 1
}

main "$@"
