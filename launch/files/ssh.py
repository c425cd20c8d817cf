"""A bash script that starts a run on hosts that ssh reaches."""

from __future__ import annotations

import shlex

from lorafusion.launch.files.asked import Asked
from lorafusion.launch.files.host import Meeting, host_script

_MEETING = Meeting(first="$first", is_first="$is_first", run="$run", address="$address")


_WATCH = """\
exec 3<&0
{ while read -r _; do :; done <&3; kill -TERM $$; } > /dev/null 2>&1 &
watcher=$!
exec 3<&-
trap 'kill "$watcher" 2>/dev/null' EXIT
"""


def ssh_file(asked: Asked) -> str:
    """The text of it."""
    return _TEXT.format(
        file=shlex.quote(asked.file),
        hosts=" ".join(map(shlex.quote, asked.hosts)),
        nodes=asked.nodes,
        host=host_script(asked, _MEETING, _WATCH),
    )


_TEXT = """\
#!/bin/bash
# Trains {file}: bash THIS-FILE [HOST ...]. Made by `lorafusion launch`.
#
# Needs ssh without a password to each host, by a name or address at which the others reach it too.
# On a file system that all hosts share, at the same path: the folder below, the job file, its
# data, Python and the run's output folder. Of its own, each host: a copy of the base, in its cache.
#
# Ctrl-C stops the run with all state saved; the same command goes on. SSH_COMMAND, as in
# SSH_COMMAND="ssh -p 2222", replaces ssh.
hosts=({hosts})
if [ $# -gt 0 ]; then hosts=("$@"); fi
if [ ${{#hosts[@]}} -ne {nodes} ]; then
  echo "error: ${{#hosts[@]}} hosts; allowed: {nodes}. Give their names: bash $0 HOST ..." >&2
  exit 2
fi
for host in "${{hosts[@]}}"; do
  case $host in
    "" | *[!A-Za-z0-9_.@-]* | -*) echo "error: '$host' is no host's name" >&2; exit 2 ;;
  esac
done
read -r -a ssh <<< "${{SSH_COMMAND:-ssh}}"

# Each host stops when its standard input ends: on Ctrl-C here, and when the connection is lost.
one_host=$(cat <<'ONE_HOST'
{host}ONE_HOST
)

folder=$(mktemp -d) || exit 2
trap 'rm -rf "$folder"' EXIT
mkfifo "$folder/open" || exit 2
exec 4<> "$folder/open"
trap 'exec 4>&-' INT TERM

run="$(date +%s)-$$"
first=${{hosts[0]#*@}}
quote="'" quoted="'\\\\''"
is_first=1
starts=()
for host in "${{hosts[@]}}"; do
  settings="first=$first is_first=$is_first run=$run address=${{host#*@}}"
  script="$settings"$'\\n'"$one_host"
  command="bash -c '${{script//$quote/$quoted}}'"
  {{
    trap '' INT  # it goes to ssh too, which would cut the connection
    "${{ssh[@]}}" -T -o BatchMode=yes -o ServerAliveInterval=15 "$host" "$command" < "$folder/open"
    code=$?
    if [ "$code" -eq 255 ]; then
      echo "error: $host cannot be reached by ssh any more; the others are stopped" >&2
      kill -TERM $$
    fi
    exit "$code"
  }} 4>&- &
  starts+=($!)
  is_first=0
done

worst=0
for index in "${{!starts[@]}}"; do
  wait "${{starts[index]}}"; code=$?
  while kill -0 "${{starts[index]}}" 2>/dev/null; do wait "${{starts[index]}}"; code=$?; done
  if [ "$code" -ne 0 ]; then echo "${{hosts[index]}}: exit code $code" >&2; fi
  if [ "$code" -gt "$worst" ]; then worst=$code; fi
done
exit "$worst"
"""
