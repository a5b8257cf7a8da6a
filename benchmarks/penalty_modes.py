"""What the cheap penalty modes lose against exact double backpropagation, if anything.

python benchmarks/penalty_modes.py --data_path DIR --seeds 0 1 2
"""

from study import Study, main

PENALISED = ("--fgr_lamb", "300", "--precision", "fp32", "--limit", "20000")
DIFFERENCES = ("--penalty_mode", "finite_difference", "--difference_step")

STUDY = Study(
    name="penalty_modes",
    heading="Cheap penalties on CIFAR-10",
    text=(
        "The flow-gradient penalty by double backpropagation (`exact`), by a difference of two "
        "ordinary gradients (`finite_difference`) and at every fourth step with four times the "
        "weight (`lazy`), and by differences in bfloat16 (`finite_difference_bf16`), beside the "
        "plain network (`baseline`): 20,000 training images, a small residual network, a short "
        "recipe, but for that in float32."
    ),
    recipe="recipes/cifar10_resnet8_short.yaml",
    variants={
        "exact": PENALISED,
        "finite_difference": (*PENALISED, *DIFFERENCES, "0.01"),
        "finite_difference_bf16": (*PENALISED, "--precision", "bf16", *DIFFERENCES, "0.05"),
        "lazy": (*PENALISED, "--penalty_mode", "lazy"),
        "baseline": PENALISED[2:],
    },
    attacks=("flow-pgd", "pgd"),
    budgets=("flow-pgd=0.05,0.1,0.155,0.2", "pgd=0.5/255,1/255,2/255,4/255"),
    shown=("exact",),
)

if __name__ == "__main__":
    main(STUDY)
