"""The smooth-activation experiment: one recipe, one penalty, four activations.

python benchmarks/activations.py --data_path DIR --seeds 0
"""

from study import Study, main

PENALISED = ("--igr_lamb", "1.5", "--igr_ramp", "1", "--precision", "fp32", "--limit", "20000")

STUDY = Study(
    name="activations",
    heading="Input-gradient penalties and smooth activations on CIFAR-10",
    text=(
        "The l1 penalty on the input gradient (GradNorm's weights at 4/255) on a small residual "
        "network whose activation alone changes; nothing else of the recipe does. Rodriguez-Munoz "
        "et al. (2024) report clean / AutoAttack accuracies of 16.9 / 6.8 (ReLU), 60.3 / 30.0 "
        "(GELU) and 61.8 / 30.6 (SiLU) for a ResNet-50 on ImageNet."
    ),
    recipe="recipes/cifar10_resnet8_short.yaml",
    variants={
        name: (*PENALISED, "--activation", name) for name in ("relu", "gelu", "silu", "softplus")
    },
    attacks=("fast", "flow-pgd"),
    budgets=("fast=1/255,2/255,4/255,8/255", "flow-pgd=0.05,0.1,0.155,0.2"),
    shown="silu",
)

if __name__ == "__main__":
    main(STUDY)
