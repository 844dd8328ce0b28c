#!/bin/sh
# Sharpen every photo in a folder and its subfolders into another folder.
# usage: examples/folder_of_photos.sh [PHOTOS [SHARP]]
set -eu
photos=${1:-$(dirname "$0")}    # default: this folder, which holds one blurred photo
sharp=${2:-sharp}

# --skip-existing: started again, it does only what is missing.
# --keep-going:    a damaged file does not stop the others; the exit code is 1 then.
# --json:          one line for each file, with the options that were used and the seconds.
uid-run "$photos" -o "$sharp" --preset balanced --skip-existing --keep-going --json > sharp.jsonl

echo "done: $(ls "$sharp" | wc -l) files in $sharp, one line for each in sharp.jsonl"
