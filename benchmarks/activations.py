"""The smooth-activation experiment: one recipe, one penalty, four activations.

python benchmarks/activations.py --limit 400 --seeds 0 1 2
"""

from study import Study, main

PENALISED = ("--igr_lamb", "1.5", "--igr_budget", "0.125", "--igr_ramp", "5")

STUDY = Study(
    name="activations",
    heading="Input-gradient penalties and smooth activations on the digits",
    text=(
        "The l1 penalty on the input gradient (GradNorm's l_GN / l_CE = 1.5, at 32/255) on a small "
        "network whose activation alone changes; nothing else of the recipe does. Rodriguez-Munoz "
        "et al. (2024) report clean / AutoAttack accuracies of 16.9 / 6.8 (ReLU), 60.3 / 30.0 "
        "(GELU) and 61.8 / 30.6 (SiLU) for a ResNet-50 on ImageNet."
    ),
    recipe=None,
    variants={
        name: (*PENALISED, "--activation", name) for name in ("relu", "gelu", "silu", "softplus")
    },
    attacks=("fast", "flow-pgd"),
    budgets=("fast=8/255,16/255,32/255,48/255", "flow-pgd=0.05,0.1,0.155,0.2"),
    shown=("silu",),
)

if __name__ == "__main__":
    main(STUDY)
