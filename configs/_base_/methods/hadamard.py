# The classification layer's matrix is Hadamard's, and not learned (Hoffer et
# al. 2018): head.fc of a classifier, fc_cls of a two-stage detector, conv_seg
# of a segmentor. More: configs/hadamard/README.md.
model_transforms = [dict(type='mmpsw.fix_classifiers')]
