"""Road scenes, segmented: plain, with GPM, and with the flow-gradient penalty.

python benchmarks/segmentation.py --data_path DIR --limit 50 --seeds 0 1 2
"""

from study import FLOW_GRADIENT, GPM, Study, main

STUDY = Study(
    name="segmentation",
    task="segmentation",
    heading="Segmentation: road scenes",
    text=(
        "A small U-Net on CamVid at 72x96 pixels, trained plainly (`baseline`), with GPM (`gpm`) "
        "and with the flow-gradient penalty (`flow_gradient`). Attacks on intensity raise the mean "
        "cross-entropy of the pixels (`pgd`) or SegPGD's (`segpgd`); labels stay where they are "
        "under `flow-pgd`."
    ),
    recipe="recipes/camvid_unet_short.yaml",
    variants={"baseline": (), "gpm": GPM, "flow_gradient": FLOW_GRADIENT},
    attacks=("pgd", "segpgd", "flow-pgd"),
    budgets=(
        *("pgd=1/255,2/255,4/255", "segpgd=1/255,2/255,4/255"),
        "flow-pgd=0.25,0.5,1",
    ),
    evaluated=("--set", "steps=10"),
    shown=("baseline", "gpm", "flow_gradient"),
)

if __name__ == "__main__":
    main(STUDY)
