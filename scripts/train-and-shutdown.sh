#!/bin/sh
# Run a training, keep what it makes in S3 on every way out, then end the machine. Without gpuctl.
#
#   train-and-shutdown.sh --to s3://bucket/run-1 --dir out --dir checkpoints -- python train.py
#
#   --to URL           where the folders go, each below its own name
#   --dir DIR          a folder to keep; repeatable (default out)
#   --every SECONDS    how often they are sent while the job runs (default 60)
#   --max-hours H      the job gets SIGTERM after so long, and the machine ends (default 24)
#   --sync-minutes M   how long the last sync may be tried before the machine ends (default 30)
#   --end COMMAND      what ends the machine (default: shutdown -h now)
#   --keep             do all of it but end the machine, to try it out
#
# Success, failure, Ctrl-C, a hang-up, SIGTERM, kill -9 of the job or of this script: the folders
# are sent once more, with exit.json ({"exit_code", "ended"}) beside them, and the machine ends.
# A second process of its own does that, so that nobody has to be there.
#
# `shutdown` ends the costs only where a machine that is off costs nothing: on AWS with
# instance_initiated_shutdown_behavior = "terminate", as infra/modules/aws-spot-gpu has it. Hetzner
# bills servers that are off, and containers have no shutdown: say there what ends them, such as
# --end 'runpodctl remove pod $RUNPOD_POD_ID'.
#
# Exit codes: the job's own; 2 wrong usage, 3 the bucket does not take anything. With 2 and 3
# nothing was started, and the machine goes on.
# POSIX sh: a bare Debian has only dash.
set -u

to='' every=60 max_hours=24 sync_minutes=30 end='shutdown -h now' keep='' dirs=''

say() { printf '%s\n' "train-and-shutdown: $*" >&2; }
usage() { say "$*; see the top of this file"; exit 2; }
whole() { case $1 in '' | *[!0-9]*) false ;; *) true ;; esac }

while [ $# -gt 0 ]; do
    case $1 in
        --) shift; break ;;
        --keep) keep=yes; shift; continue ;;
        --to | --dir | --every | --max-hours | --sync-minutes | --end) ;;
        *) usage "'$1' is no option; the command comes after --" ;;
    esac
    [ $# -gt 1 ] || usage "$1 needs a value"
    case $1 in
        --to) to=${2%/} ;;
        # One a line: names may hold spaces.
        --dir) dirs="$dirs${2%/}
" ;;
        --every) every=$2 ;;
        --max-hours) max_hours=$2 ;;
        --sync-minutes) sync_minutes=$2 ;;
        --end) end=$2 ;;
    esac
    shift 2
done
[ $# -gt 0 ] || usage "the command is missing: ... -- python train.py"
case $to in s3://?*) ;; *) usage "--to: expected s3://bucket/prefix, got '$to'" ;; esac
whole "$every" && [ "$every" -gt 0 ] || usage "--every: expected seconds, got '$every'"
whole "$sync_minutes" || usage "--sync-minutes: expected minutes, got '$sync_minutes'"
seconds=$(awk -v h="$max_hours" 'BEGIN { if (h ~ /^[0-9]*\.?[0-9]+$/ && h > 0) printf "%d", h * 3600 + 0.5 }')
[ -n "$seconds" ] || usage "--max-hours: expected a number above 0, got '$max_hours'"
[ -n "$dirs" ] || dirs='out
'

PATH=$PATH:${SETUP_VENV:-/opt/gpuctl/venv}/bin # where setup-machine.sh --aws puts it
command -v aws >/dev/null 2>&1 ||
    { say "there is no AWS command line here: setup-machine.sh --aws, or pip install awscli"; exit 3; }

state=$(mktemp -d) || exit 3
now() { date -u +%Y-%m-%dT%H:%M:%SZ; }

put() { printf '%s\n' "$1" | aws s3 cp --only-show-errors - "$to/$2"; }

# Send the folders; what is there already and unchanged is not sent again.
send() {
    printf '%s' "$dirs" | {
        sent=0
        while IFS= read -r dir; do
            [ -d "$dir" ] || continue
            aws s3 sync --only-show-errors "$dir" "$to/${dir##*/}" </dev/null || sent=1
        done
        return $sent
    }
}

# Now, not after hours of training: may we write there?
put "{\"started\": \"$(now)\"}" started.json ||
    { say "$to does not take anything; nothing was started"; rm -rf "$state"; exit 3; }

last_words() {
    tries=0
    until send && put "{\"exit_code\": $(cat "$state/code" 2>/dev/null || echo null), \"ended\": \"$(now)\"}" exit.json
    do
        tries=$((tries + 1))
        if [ "$(date +%s)" -ge $((began_end + sync_minutes * 60)) ]; then
            say "the last sync did not succeed in $sync_minutes minutes"
            break
        fi
        sleep $((tries < 6 ? tries * 5 : 30))
    done
    touch "$state/done"
    if [ -n "$keep" ]; then
        say "ended; the machine is kept, as told"
        return
    fi
    say "ending the machine: $end"
    sh -c "$end"
}

# A zombie has ended: in a container without an init nobody may ever reap it.
alive() {
    kill -0 "$job" 2>/dev/null || return 1
    case $(sed 's/.*) //' "/proc/$job/stat" 2>/dev/null) in [ZX]*) return 1 ;; esac
}

# Waits for the end of the job, whoever else dies meanwhile.
keeper() {
    trap '' HUP INT TERM
    deadline=$(($(date +%s) + seconds))
    next=$(($(date +%s) + every))
    while alive; do
        sleep 1
        if [ "$(date +%s)" -ge "$deadline" ]; then
            say "--max-hours is used up"
            kill -TERM "$job" 2>/dev/null
            for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do alive && sleep 1; done
            kill -KILL "$job" 2>/dev/null
            break
        elif [ "$(date +%s)" -ge "$next" ]; then
            send || say "a sync failed; the next one is in $every s"
            next=$(($(date +%s) + every))
        fi
    done
    sleep 1 # the exit code, when somebody is there to tell it
    began_end=$(date +%s)
    last_words
}

"$@" &
job=$!
keeper &
keeper=$!
trap 'signalled=yes; kill -TERM "$job" 2>/dev/null' HUP INT TERM

# A signal ends `wait`, not the job.
signalled=yes
while [ -n "$signalled" ]; do
    signalled=''
    wait "$job"
    code=$?
done
echo "$code" >"$state/code"
say "the job ended with exit code $code"
while [ ! -e "$state/done" ] && kill -0 "$keeper" 2>/dev/null; do
    wait "$keeper"
done
if [ ! -e "$state/done" ]; then # somebody killed the keeper
    began_end=$(date +%s)
    last_words
fi
rm -rf "$state"
exit "$code"
