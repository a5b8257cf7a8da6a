"""Blood cells, detected by a small network: plain, and with GPM.

python benchmarks/detection.py --data_path DIR --limit 48 --seeds 0 1 2
"""

from study import GPM, Study, main

STUDY = Study(
    name="detection",
    task="detection",
    heading="Detection: blood cells",
    text=(
        "A small one-stage detector on BCCD at 96x128 pixels, trained plainly (`baseline`) and "
        "with GPM (`gpm`)."
    ),
    recipe="recipes/bccd_small_short.yaml",
    variants={"baseline": (), "gpm": GPM},
    attacks=("pgd", "flow-pgd"),
    budgets=("pgd=1/255,2/255,4/255", "flow-pgd=0.5,1,2"),
    evaluated=("--set", "steps=10"),
    shown=("baseline", "gpm"),
)

if __name__ == "__main__":
    main(STUDY)
