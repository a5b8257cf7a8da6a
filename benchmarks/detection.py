"""Blood cells, detected: plain, and with GPM.

python benchmarks/detection.py --data_path DIR --limit 72 --seeds 0
"""

from study import Study, main

STUDY = Study(
    name="detection",
    task="detection",
    heading="Detection: blood cells",
    text=(
        "Faster R-CNN with a ResNet-18 and a feature pyramid, from scratch, on BCCD at 96x128 "
        "pixels: trained plainly (`baseline`) and with GPM (`gpm`)."
    ),
    recipe="recipes/bccd_faster_rcnn.yaml",
    variants={"baseline": (), "gpm": ("--gpm_lamb", "50", "--penalty_mode", "finite_difference")},
    attacks=("pgd", "flow-pgd"),
    budgets=("pgd=1/255,2/255,4/255,8/255", "flow-pgd=0.25,0.5,1,2"),
    evaluated=("--set", "steps=5"),
    shown=("baseline", "gpm"),
)

if __name__ == "__main__":
    main(STUDY)
