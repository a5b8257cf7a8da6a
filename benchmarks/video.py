"""Clips of people's actions: plain, with GPM, and with the flow-gradient penalty.

python benchmarks/video.py --data_path DIR --seeds 0 1 2
"""

from study import FLOW_GRADIENT, GPM, Study, main

STUDY = Study(
    name="video",
    task="video",
    heading="Video: actions",
    text=(
        "Walking, standing up, sitting down, sitting and falling, seen from the ceiling: 8 frames "
        "of 40 pixels, a small convolutional network, trained plainly (`baseline`), with GPM "
        "(`gpm`) and with the flow-gradient penalty (`flow_gradient`). `pgd` changes every frame "
        "by itself, `shared-pgd` all alike; `flow-clip-pgd` moves every frame's pixels, smoothly "
        "in time."
    ),
    recipe="recipes/actions_clip_cnn_short.yaml",
    variants={"baseline": (), "gpm": GPM, "flow_gradient": FLOW_GRADIENT},
    attacks=("pgd", "shared-pgd", "flow-clip-pgd"),
    budgets=(
        *("pgd=1/255,2/255,4/255", "shared-pgd=1/255,2/255,4/255"),
        "flow-clip-pgd=0.25,0.5,1",
    ),
    shown=("baseline", "gpm"),
    pictures=("clips.png",),
)

if __name__ == "__main__":
    main(STUDY)
