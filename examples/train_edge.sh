#!/bin/sh
# Train the edge bundle from nothing, on procedural images: uid-train's stages in order, each of which resumes.
# On a CPU without bfloat16 leave --mixed-precision out.
# usage: examples/train_edge.sh CHECKPOINT
set -eu
checkpoint=$1

uid-train vae "$checkpoint" --in-place --config edge --steps 2000 --learning-rate 1e-3
uid-train refiner "$checkpoint" --in-place --steps 25000 --learning-rate 6e-4 --mixed-precision bf16
uid-train base "$checkpoint" --in-place --steps 3000 --learning-rate 5e-4
uid-train deblur "$checkpoint" --in-place --steps 2500 --learning-rate 5e-4         # T_1, warm-up
uid-train blur-transfer "$checkpoint" --in-place --steps 500 --learning-rate 5e-4              # T_2, warm-up
uid-train joint "$checkpoint" --in-place --steps 4500 --learning-rate 5e-4 --mixed-precision bf16    # T_1, T_2, T_3
uid-export half "$checkpoint" "$checkpoint-half"
uid-export bundle "$checkpoint-half" -o "$checkpoint-bundle"
uid-bench tradeoff -m "$checkpoint-bundle" --record                                 # the figures of its presets
