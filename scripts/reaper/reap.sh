#!/bin/sh
# Run `gpuctl reap` once, for a timer: with settings from a file, and a word to you when something
# may still be billing. docs/reaper.md says how to install it.
#
#   reap.sh [SETTINGS]      default: ~/.config/gpuctl/reaper.env
#
# stdout: the JSON document of `gpuctl reap`. Exit code: that of `gpuctl reap`; 2 without settings.
set -u

settings=${1:-$HOME/.config/gpuctl/reaper.env}
if [ ! -r "$settings" ]; then
    echo "reap.sh: $settings cannot be read; scripts/reaper/reaper.env is an example" >&2
    exit 2
fi
set -a
# shellcheck source=/dev/null
. "$settings"
set +a
# Timers start with hardly any PATH.
PATH="${GPUCTL_BIN:-$HOME/.local/bin}:$HOME/.local/bin:/opt/homebrew/bin:/usr/local/bin:/usr/bin:/bin"
export PATH

# shellcheck disable=SC2086 # several options in one setting
said=$(gpuctl reap --json ${REAP_OPTIONS:-})
code=$?
[ -z "$said" ] || printf '%s\n' "$said"
if [ "$code" -ne 0 ] && [ -n "${ALERT_COMMAND:-}" ]; then
    printf 'gpuctl reap on %s ended with %s: something may still be billing.\n%s\n' \
        "$(uname -n)" "$code" "$said" | sh -c "$ALERT_COMMAND" >&2 ||
        echo "reap.sh: the alert could not be sent" >&2
fi
exit "$code"
