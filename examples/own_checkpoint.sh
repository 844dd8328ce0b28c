#!/bin/sh
# From a PyTorch checkpoint to a sharp photo: export, then run. Needs: pip install 'uid-runtime[export]'
# usage: examples/own_checkpoint.sh [CHECKPOINT [PHOTO]]
set -eu
checkpoint=${1:-checkpoint}    # a folder in the diffusers layout
photo=${2:-$(dirname "$0")/astronaut_blurred.jpg}

if [ ! -e "$checkpoint" ]; then    # none there: a tiny one with random weights, to try the tools; its images are noise
    uid-export random tiny "$checkpoint"
fi

# Every component is compared with PyTorch. --image-steps 1: one step is enough to compare a whole image.
if [ ! -e bundle ]; then
    uid-export bundle "$checkpoint" -o bundle --image-steps 1
fi

# Two steps, which suit a try; without --steps it is the checkpoint's own number.
uid-run "$photo" -o sharp.png --model bundle --steps 2 --overwrite
