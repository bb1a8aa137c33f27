# shellcheck shell=bash
# What Compose reads beside its own files: .env, in the part of its syntax that Compose 1.29 and 2
# take alike, and which compose files there are. Sourced by scripts that have `say`.

DOTENV_OURS='^(REEF_|BENCH_|COMPOSE_|EDGETPU|LIBEDGETPU|LOG_LEVEL)'
DOTENV_LINE='^[[:space:]]*(export[[:space:]]+)?([A-Za-z_][A-Za-z0-9_]*)[[:space:]]*=[[:space:]]*(.*)$'
DOTENV_END='[[:space:]]*(#.*)?$'
DOTENV_IN_SINGLE="^'([^']*)'$DOTENV_END"
# Compose 2 fills in a $ there and 1.29 does not; a backslash would need both their rules.
DOTENV_IN_DOUBLE="^\"([^\"\\\\\$]*)\"$DOTENV_END"
DOTENV_PLAIN="^[A-Za-z0-9_.,:/@%+=~-]*$"

# Prints the variables of a file that are ours as NAME=VALUE, without quotes, comments and what
# Windows adds. Fails with one line that says what is wrong where.
dotenv_read() {
    local line text number=0
    [ -e "$1" ] || return 0
    [ -r "$1" ] || { say "$1 can't be read by this user" && return 1; }
    dotenv_is_text "$1" || return 1
    text=$(cat "$1")
    while IFS= read -r line; do
        number=$((number + 1))
        [ "$number" -gt 1 ] || line=${line#$'\xef\xbb\xbf'}
        line=${line%$'\r'}
        [[ ! $line =~ ^[[:space:]]*(#|$) ]] || continue
        [[ $line =~ $DOTENV_LINE ]] ||
            { dotenv_refuse "$1" "$number" 'takes the form NAME=value' && return 1; }
        dotenv_unquoted "$1" "$number" "${BASH_REMATCH[2]}" "${BASH_REMATCH[3]}" || return 1
    done <<<"$text"
}

dotenv_is_text() {
    if [ "$(LC_ALL=C tr -d '\000' <"$1" | wc -c)" -ne "$(wc -c <"$1")" ]; then
        say "$1 is UTF-16, as some editors of Windows write it; save it as UTF-8"
        return 1
    elif command -v iconv >/dev/null && ! iconv -f UTF-8 -t UTF-8 "$1" >/dev/null 2>&1; then
        say "$1 is not UTF-8; save it as that"
        return 1
    fi
}

dotenv_unquoted() {
    local file=$1 number=$2 name=$3 value=$4
    [[ $name =~ $DOTENV_OURS ]] || return 0
    case $value in
    "'"*)
        [[ $value =~ $DOTENV_IN_SINGLE ]] ||
            { dotenv_refuse "$file" "$number" "$name has an odd quote" && return 1; }
        value=${BASH_REMATCH[1]}
        ;;
    '"'*)
        [[ $value =~ $DOTENV_IN_DOUBLE ]] ||
            { dotenv_refuse "$file" "$number" "$name has an odd quote, or a \$ or \\ in double quotes; take single ones" && return 1; }
        value=${BASH_REMATCH[1]}
        ;;
    *)
        value=${value%%[[:space:]]#*}
        value=${value%"${value##*[![:space:]]}"}
        [[ $value != *[\$$'\r']* ]] ||
            { dotenv_refuse "$file" "$number" "$name has a \$ or an odd line end; put its value into single quotes" && return 1; }
        ;;
    esac
    printf '%s=%s\n' "$name" "$value"
}

# The value itself is not shown: it may be a key.
dotenv_refuse() { say "$1, line $2: $3"; }

# The last value of a variable among lines of dotenv_read; nothing where it is not set.
dotenv_get() { sed -n "s/^$1=//p" <<<"$2" | tail -n 1; }

# A file's text with NAME=VALUE in it: in the place of the variable's lines, else at the end.
dotenv_with() {
    local text=$1 name=$2 value=$3 line written='' out=''
    [[ $value =~ $DOTENV_PLAIN ]] || value="'$value'"
    while IFS= read -r line; do
        if [[ $line =~ $DOTENV_LINE ]] && [ "${BASH_REMATCH[2]}" = "$name" ]; then
            [ -z "$written" ] || continue
            line=$name=$value written=yes
        fi
        out+=$line$'\n'
    done <<<"$text"
    [ -n "$text" ] || out=''
    [ -n "$written" ] || out+=$name=$value$'\n'
    printf '%s' "$out"
}

# What Compose reads when COMPOSE_FILE is not set.
compose_files() {
    local file files=compose.yaml
    for file in compose.override.yaml compose.override.yml docker-compose.override.yml; do
        [ ! -e "$file" ] || files+=:$file
    done
    echo "$files"
}
