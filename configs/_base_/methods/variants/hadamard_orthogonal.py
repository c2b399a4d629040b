# The same with a random orthogonal matrix, a scale from 10 and a bias from 0.
model_transforms = [dict(type='mmpsw.fix_classifiers', kind='orthogonal')]
