"""Training against deformations: by a penalty, by attacked images, by both.

python benchmarks/deformation_training.py --data_path DIR --seeds 0
"""

from study import Study, main

AGAINST_FLOWS = ("--adversarial", "flow-pgd", "--adversarial_steps", "3")
HALVES = ("--adversarial_step_size", "0.5")

STUDY = Study(
    name="deformation_training",
    heading="Training against deformations on CIFAR-10",
    text=(
        "A small residual network under one short recipe: plain (`baseline`), with the flow-"
        "gradient penalty (`flow_gradient`), on images attacked by three steps of `flow-pgd` at "
        "0.155 pixels (`adversarial`), and with both (`both`). Then attacks on location and, of "
        "the same models, on intensity: a defence against one need not help against the other."
    ),
    recipe="recipes/cifar10_resnet8_short.yaml",
    variants={
        "baseline": (),
        "flow_gradient": ("--fgr_lamb", "300"),
        "adversarial": (*AGAINST_FLOWS, *HALVES),
        "both": ("--fgr_lamb", "300", *AGAINST_FLOWS, *HALVES),
    },
    attacks=("flow-pgd", "flow-vertex", "rotate-translate", "pgd"),
    budgets=(
        "flow-pgd=0.05,0.1,0.155,0.2,0.3,0.5",
        "flow-vertex=0.05,0.1,0.155,0.2,0.3,0.5",
        "rotate-translate=0.5,1,2,4,8",
        "pgd=0.5/255,1/255,2/255,4/255,8/255",
    ),
    shown=("both",),
    pictures=("deformations.png", "deformation.gif"),
)

if __name__ == "__main__":
    main(STUDY)
