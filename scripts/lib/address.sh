# shellcheck shell=bash
# Where clients reach the server, and whether it answers there. Sourced by appliance.sh.

ASK_S=5
TLS_ROOT=build/tls-root.crt

# What the engine has opened, or the name that TLS stands for; fails when there is nothing.
published() {
    local where
    if serves_tls; then
        where=$(docker port "$(compose ps --quiet tls)" 8443/tcp 2>/dev/null | head -n 1)
        [ -n "$where" ] || return 1
        where=:${where##*:}
        printf 'https://%s%s' "$(tls_name)" "${where/%:443/}"
    else
        # Opened on every address, it is reached on this computer's own.
        where=$(docker port "$(container)" 5000/tcp 2>/dev/null | head -n 1 |
            sed 's/^0\.0\.0\.0:/127.0.0.1:/; s/^\[::\]:/[::1]:/')
        [ -n "$where" ] || return 1
        printf 'http://%s' "$where"
    fi
}

serves_tls() { compose config --services 2>/dev/null | grep --quiet --line-regexp tls; }

tls_name() { setting REEF_TLS_NAME '' | sed 's/[ ,:].*//'; }

# What curl must know to reach it: where a name leads that this computer doesn't know, and whom to
# trust. Ends with a space.
curl_options() {
    local port=${address##*:}
    [[ $address == https://* ]] || return 0
    [[ $port =~ ^[0-9]+$ ]] || port=443
    getent hosts "$(tls_name)" >/dev/null ||
        printf -- '--resolve %s:%s:127.0.0.1 ' "$(tls_name)" "$port"
    if [ "$(setting REEF_TLS internal)" = internal ]; then
        fetch_tls_root || true # it is not there yet
        printf -- '--cacert %s ' "$TLS_ROOT"
    elif [[ $(setting REEF_TLS '') == /* ]]; then
        printf -- '--insecure ' # a certificate of the user's, which this computer may not trust
    fi
}

fetch_tls_root() {
    mkdir -p "${TLS_ROOT%/*}"
    docker cp "$(compose ps --quiet tls):/data/caddy/pki/authorities/local/root.crt" "$TLS_ROOT" \
        >/dev/null 2>&1
}

# What a route answers; fails unless that is a 200.
ask() {
    local -a options
    read -r -a options <<<"$(curl_options)"
    curl --silent --fail --globoff --noproxy '*' --max-time "$ASK_S" "${options[@]}" "$address$1"
}

# Whether other computers reach it.
is_open() {
    local where
    where=$(docker port "$(container)" 5000/tcp)
    ! serves_tls || where+=$'\n'$(docker port "$(compose ps --quiet tls)" 8443/tcp)
    grep --quiet --invert-match '^127\.\|^\[::1\]\|^$' <<<"$where"
}
