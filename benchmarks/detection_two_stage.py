"""Blood cells, detected by Faster R-CNN: plain, and with GPM.

python benchmarks/detection_two_stage.py --data_path DIR --limit 16 --seeds 0
"""

from study import GPM, Study, main

STUDY = Study(
    name="detection_two_stage",
    task="detection",
    heading="Detection: blood cells in two stages",
    text=(
        "Faster R-CNN with a ResNet-18 and a feature pyramid, from scratch, on BCCD at 96x128 "
        "pixels: trained plainly (`baseline`) and with GPM (`gpm`)."
    ),
    recipe="recipes/bccd_faster_rcnn_short.yaml",
    variants={"baseline": (), "gpm": GPM},
    attacks=("pgd", "flow-pgd"),
    budgets=("pgd=2/255,4/255", "flow-pgd=0.5,1"),
    evaluated=("--set", "steps=5"),
    shown=("baseline", "gpm"),
)

if __name__ == "__main__":
    main(STUDY)
