# For recipes that make many trainings, sourced: one that has finished is not begun again.
# shellcheck shell=bash

once() { # FOLDER COMMAND… — prints to FOLDER.log, and of a failure its last lines here
  if [ -f "$1/finished" ]; then return; fi
  "${@:2}" >"$1.log" 2>&1 || { tail -n 3 "$1.log" >&2; exit 1; }
  touch "$1/finished"
  echo "$1: $(tail -n 1 "$1.log")"
}
export -f once
