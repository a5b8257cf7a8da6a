"""The flow-gradient experiment: VGG-11 without and with the penalty.

python benchmarks/flow_gradient.py --data_path DIR --seeds 0
"""

from study import Study, main

STUDY = Study(
    name="flow_gradient",
    heading="The flow gradient on CIFAR-10",
    text=(
        "VGG-11 with batch norm, trained without (`baseline`) and with the flow-gradient penalty "
        "(`flow_gradient`), both under the same short recipe. `fgr` is the paper's attack, and "
        "0.155 pixels its budget in the paper (0.01 in [-1,1] coordinates)."
    ),
    recipe="recipes/cifar10_vgg11_short.yaml",
    variants={"baseline": (), "flow_gradient": ("--fgr_lamb", "300")},
    attacks=("fgr", "stadv", "pgd"),
    budgets=(
        "fgr=0.05,0.1,0.155,0.2,0.3",
        "stadv=0.05,0.1,0.155,0.2,0.3",
        "pgd=0.5/255,1/255,2/255,4/255",
    ),
    shown=("flow_gradient",),
)

if __name__ == "__main__":
    main(STUDY)
