#!/usr/bin/env bash
# In the virtual machine: runs what comes in. A line is a name and a command in base64; a line of
# answer is that name, the status, and the output in base64.
set -u

PORT=/dev/virtio-ports/reef.agent

main() {
    until [ -c "$PORT" ]; do sleep 0.2; done
    exec 3<>"$PORT"
    while read -r name command <&3; do
        [ -n "$command" ] || continue
        base64 --decode <<<"$command" >/run/reef-test-command
        bash /run/reef-test-command </dev/null >/run/reef-test-output 2>&1 3>&-
        printf '%s %s %s\n' "$name" "$?" "$(base64 --wrap=0 /run/reef-test-output)" >&3
    done
}

main "$@"
