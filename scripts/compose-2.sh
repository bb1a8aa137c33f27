#!/usr/bin/env bash
# Compose 2 for this user, out of Debian 13's package, on a Debian that has only Compose 1.29.
set -eu

SUITE=trixie
PLUGINS=${DOCKER_CONFIG:-$HOME/.docker}/cli-plugins

usage() {
    cat <<END
Usage: scripts/compose-2.sh [--help]

Unpacks the plugin of Debian 13's docker-compose into $PLUGINS, so that
'docker compose' works beside 'docker-compose'. It takes the package from the archive that this
host's apt is set up for, which checks its signature; nothing else on the host is changed.

To undo it: rm $PLUGINS/docker-compose
END
}

main() {
    case ${1-} in
    '') ;;
    --help | -h) usage && exit ;;
    *) die "no such option: $1; see --help" ;;
    esac
    if docker compose version >/dev/null 2>&1; then
        docker compose version
        return
    fi
    command -v apt-get >/dev/null || die "there is no apt here; docs.docker.com tells how to get Compose 2"
    # shellcheck disable=SC2016 # apt replaces $(SITE)
    archive=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -v security | head -n 1)
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -n "$archive" ] && [ -e "$keyring" ] || die "this host's apt knows no archive of Debian"
    folder=$(mktemp --directory)
    trap 'rm -rf "$folder"' EXIT
    cd "$folder"
    mkdir -p lists/partial cache/archives/partial
    echo "deb [signed-by=$keyring] $archive $SUITE main" >sources.list
    apart=(-o "Dir::Etc::SourceList=$folder/sources.list" -o Dir::Etc::SourceParts=/nonexistent
        -o "Dir::State::Lists=$folder/lists" -o "Dir::Cache=$folder/cache"
        -o APT::Sandbox::User=root -q -q)
    apt-get "${apart[@]}" update
    apt-get "${apart[@]}" download docker-compose
    dpkg-deb --extract docker-compose_*.deb unpacked
    mkdir -p "$PLUGINS"
    install unpacked/usr/libexec/docker/cli-plugins/docker-compose "$PLUGINS/"
    docker compose version
}

die() {
    echo "compose-2.sh: $*" >&2
    exit 1
}

main "$@"
