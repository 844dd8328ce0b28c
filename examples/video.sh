#!/bin/sh
# Sharpen a video, or a folder of numbered frames, into a video. Needs: pip install 'uid-runtime[video]'
# usage: examples/video.sh [CLIP_OR_FRAMES [OUTPUT]]
set -eu
input=${1:-}
output=${2:-sharp.mp4}

if [ -z "$input" ]; then    # nothing given: three frames, each of them the example photo
    input=frames
    mkdir -p "$input"
    for number in 1 2 3; do
        cp "$(dirname "$0")/astronaut_blurred.jpg" "$input/$number.jpg"
    done
fi

# One transform for each frame is the fastest. A clip keeps its timestamps and its sound; frames are shown 25 a second.
uid-run "$input" -o "$output" --preset fast --overwrite
