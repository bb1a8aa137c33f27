#!/usr/bin/env bash
# Makes the base image from Debian's archive, where no container registry can be reached.
set -eu

KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
HOST_CA=/etc/ssl/certs/ca-certificates.crt
IMAGE_CA=/usr/local/share/ca-certificates/host.crt

usage() {
    cat <<END
Usage: scripts/base-image.sh [--suite NAME] [--archive URL] [--security URL] [--dry-run]

Makes two images with mmdebstrap, for this machine's architecture:

  reef-base:SUITE        stands in for debian:SUITE-slim: the same packages, apt sources and
                         excluded files. scripts/check-base.sh compares them.
  reef-build-base:SUITE  the same, and it trusts the certificate authorities that this host
                         trusts ($HOST_CA). For build stages only.

  --suite NAME    the Debian release; trixie unless given
  --archive URL   a mirror of Debian's archive, which the image then uses too; the archive itself
                  unless given
  --security URL  a mirror of its security updates; needed with --archive
  --dry-run       say what would be run, and run nothing

Without mmdebstrap, root gets it with apt and anybody else is told to. Nothing else on this
host is changed; 'docker image rm reef-base:trixie reef-build-base:trixie' undoes it.

The same archive and the same SOURCE_DATE_EPOCH (seconds since 1970; today, 00:00 UTC, unless
set) give the same bytes: the script prints their sha256, which is also the image's layer.
END
}

main() {
    local suite=trixie archive='' security=''
    dry_run=no
    while [ $# -gt 0 ]; do
        case $1 in
        --suite) suite=${2:?"--suite takes a name"} && shift ;;
        --archive) archive=${2:?"--archive takes a URL"} && shift ;;
        --security) security=${2:?"--security takes a URL"} && shift ;;
        --dry-run) dry_run=yes ;;
        --help | -h) usage && exit ;;
        *) die "no such option: $1; see --help" ;;
        esac
        shift
    done
    case $suite in
    *[!a-z]* | '') die "--suite takes a release's name in small letters, not '$suite'" ;;
    esac
    [ -z "$archive" ] || [ -n "$security" ] || die "--archive needs --security beside it"
    export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(date --utc --date=00:00 +%s)}"
    need_docker
    need_mmdebstrap
    folder=$(mktemp --directory)
    trap 'rm -rf "$folder"' EXIT
    make_base "$suite" "$archive" "$security"
    make_build_base "$suite"
}

make_base() {
    local suite=$1 archive=$2 security=$3 tar=$folder/base.tar
    local -a mirrors=()
    [ -z "$archive" ] || mirrors=("deb $archive $suite main" "deb $archive $suite-updates main"
        "deb $security $suite-security main")
    say "reef-base:$suite: $suite from ${archive:-"Debian's archive"}, as of" \
        "$(date --utc --date="@$SOURCE_DATE_EPOCH" +%F)"
    apt_settings >"$folder/apt"
    dpkg_settings >"$folder/dpkg"
    tidy_hook >"$folder/tidy"
    chmod +x "$folder/tidy"
    run mmdebstrap --variant=minbase --format=tar --quiet --keyring="$KEYRING" \
        --aptopt="$folder/apt" --dpkgopt="$folder/dpkg" --customize-hook="$folder/tidy" \
        "$suite" "$tar" "${mirrors[@]}" >&2
    [ "$dry_run" = yes ] || say "reef-base:$suite: sha256:$(sha256sum "$tar" | cut -d' ' -f1)"
    run docker import --change 'CMD ["bash"]' "$tar" "reef-base:$suite" >/dev/null
}

make_build_base() {
    local suite=$1
    [ -r "$HOST_CA" ] || [ "$dry_run" = yes ] || die "$HOST_CA is missing; install the package ca-certificates"
    say "reef-build-base:$suite: and the certificate authorities that this host trusts"
    mkdir "$folder/context"
    # Not into /etc/ssl: there the package ca-certificates would replace it when installed.
    run cp "$HOST_CA" "$folder/context/host.crt"
    cat >"$folder/context/Dockerfile" <<END
FROM reef-base:$suite
COPY host.crt $IMAGE_CA
ENV SSL_CERT_FILE=$IMAGE_CA PIP_CERT=$IMAGE_CA
END
    run docker build --quiet --tag "reef-build-base:$suite" "$folder/context" >/dev/null 2>&1 ||
        die "reef-build-base:$suite could not be built; docker build $folder/context says why"
}

# What the slim image has not, and its sources in the form that it has them; $1 is its root.
tidy_hook() {
    cat <<END
#!/bin/sh
set -eu
sed -n 's|^deb \(\[[^]]*\] \)\{0,1\}\([^ ]*\) \([^ ]*\) \(.*\)|Types: deb\nURIs: \2\nSuites: \3\nComponents: \4\nSigned-By: $KEYRING\n|p' \\
    "\$1/etc/apt/sources.list" >"\$1/etc/apt/sources.list.d/debian.sources"
rm "\$1/etc/apt/sources.list"
rm -f "\$1/etc/hostname" "\$1/etc/resolv.conf"
rm -rf "\$1"/var/lib/apt/lists/* "\$1"/var/log/*
rm -rf "\$1"/var/cache/debconf/*-old "\$1"/var/lib/dpkg/*-old
END
}

# The next two are those of debian:*-slim, by content.

apt_settings() {
    cat <<'END'
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/archives/partial/*.deb /var/cache/apt/*.bin || true"; };
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Acquire::Languages "none";
Acquire::GzipIndexes "true";
Apt::AutoRemove::SuggestsImportant "false";
END
}

dpkg_settings() {
    cat <<'END'
force-unsafe-io
path-exclude=/usr/share/doc/*
path-include=/usr/share/doc/*/copyright
path-exclude=/usr/share/info/*
path-exclude=/usr/share/linda/*
path-exclude=/usr/share/lintian/overrides/*
path-exclude=/usr/share/locale/*
path-exclude=/usr/share/man/*
END
}

need_docker() {
    [ "$dry_run" = yes ] || docker version >/dev/null 2>&1 ||
        die "no Docker engine answers; start it, or let this user reach it"
}

need_mmdebstrap() {
    ! command -v mmdebstrap >/dev/null || return 0
    [ "$(id -u)" -eq 0 ] || [ "$dry_run" = yes ] || die "mmdebstrap is missing; run: sudo apt-get install mmdebstrap"
    command -v apt-get >/dev/null || [ "$dry_run" = yes ] || die "mmdebstrap is missing, and so is apt; use a Debian host"
    say "installing mmdebstrap on this host"
    run apt-get update --quiet --quiet
    run apt-get install --yes --quiet --quiet --no-install-recommends mmdebstrap
}

run() {
    printf '+ %s\n' "$*" >&2
    [ "$dry_run" = yes ] || "$@"
}

say() { printf 'base image: %s\n' "$*" >&2; }

die() {
    say "$*"
    exit 1
}

main "$@"
