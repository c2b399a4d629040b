"""Installs mmpsw beside the OpenMMLab that a user already has.

``tools/setup.sh`` makes a whole, pinned environment instead.
"""

import re
from pathlib import Path
from tempfile import TemporaryDirectory

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def read_version() -> str:
    """Returns the version without importing mmpsw, which needs torch."""
    text = (HERE / 'mmpsw' / 'version.py').read_text(encoding='utf-8')
    return re.search(r"^__version__ = '(.+)'$", text, re.MULTILINE)[1]


def read_description() -> str:
    """Returns the README; what links to files of a checkout is its text."""
    text = (HERE / 'README.md').read_text(encoding='utf-8')
    text = re.sub(r'!\[[^\]]*\]\((?!http)[^)]*\)\n*', '', text)
    return re.sub(r'\[([^\]]*)\]\((?!http|#)[^)]*\)', r'\1', text)


# Why these bounds: tests/SECURITY.md. mmengine is not here, as it has two
# names, of which a user has one: mmpsw/compatibility.py looks.
REQUIRES = [
    'torch>=2.6,<3',
    'numpy>=1.23,<3',
    'packaging>=21,<28',
    'rich>=12,<16',
    # mmengine 0.10.7 imports pkg_resources for `_base_ = 'mmdet::...'`
    'setuptools>=78.1.1,<81',
    # What a comparison needs. No extra: who misses one of them would learn
    # that when the runs, which take hours, are over.
    'jinja2>=3.1.6,<4',
    'matplotlib>=3.5,<4',
    'pandas>=2.1,<4',
    'scipy>=1.10,<2',
    'tabulate>=0.9,<1',
]

EXTRAS = {
    # One of these two. mmdet and mmseg themselves accept this mmcv.
    'openmmlab': ['mmengine>=0.10.2,<0.11', 'mmcv>=2.0.0rc4,<2.2',
                  'mmdet>=3.0,<3.4', 'mmpretrain>=1.0,<1.3',
                  # mmsegmentation imports ftfy and regex, undeclared
                  'mmsegmentation>=1.0,<1.3', 'ftfy>=6,<7',
                  'regex>=2022.1.18,<2028'],
    'onedl': ['onedl-mmengine>=0.10.12,<0.11', 'onedl-mmcv>=2.3.6,<2.4',
              'onedl-mmdetection>=3.5.1,<3.6', 'onedl-mmpretrain>=1.3.6,<1.4',
              'onedl-mmsegmentation>=1.4.2,<1.5'],
    'schedule_free': ['schedulefree>=1.4,<2'],
    # the embedded data set of the quickstart
    'tools': ['scikit-learn>=1.5,<2'],
    'deploy': ['onnx>=1.18,<2', 'onnxruntime>=1.20,<2', 'onnxscript>=0.7,<1'],
    # grids of samples, and Inception's features for FID
    'gan': ['torchvision>=0.21', 'torch-fidelity>=0.3,<0.5'],
    'tests': ['hypothesis>=6,<7', 'pytest>=7.4,<10', 'pytest-timeout>=2.1,<3',
              'pytest-xdist>=3.3,<4', 'schedulefree>=1.4,<2',
              'tensorboard>=2.15,<3'],
}

# Not beside the sources, where the next wheel would find what is gone by then.
with TemporaryDirectory() as scratch:
    setup(
        name='mmpsw',
        version=read_version(),
        description='Periodic sampling over model weights for OpenMMLab',
        long_description=read_description(),
        long_description_content_type='text/markdown',
        author='The mmpsw authors',
        keywords=['weight averaging', 'periodic sampling', 'OpenMMLab',
                  'mmdetection', 'mmsegmentation', 'mmpretrain', 'SWA', 'EMA'],
        project_urls={
            'Paper': 'https://arxiv.org/abs/1905.05774',
            'Patent': 'https://patents.google.com/patent/US11922316B2/en',
        },
        license='Apache-2.0',
        python_requires='>=3.10,<3.13',
        packages=find_packages(include=['mmpsw', 'mmpsw.*']),
        package_data={
            # Where mmengine looks for `_base_ = 'mmpsw::...'`, and mim for
            # tools: links in a checkout, what they lead to in a wheel.
            'mmpsw': ['py.typed', 'README.md',
                      'engine/averaging/README.md', '.mim/*.yml',
                      '.mim/configs/**/*.py', '.mim/configs/**/*.md',
                      '.mim/tools/**/*.py', '.mim/tools/*.md',
                      '.mim/tools/*_train.sh'],
            'mmpsw.compare': ['*.html'],
        },
        install_requires=REQUIRES,
        extras_require=EXTRAS,
        entry_points={'console_scripts': ['mmpsw = mmpsw.__main__:main']},
        options={
            'build': {'build_base': scratch},
            'egg_info': {'egg_base': scratch},
        },
        classifiers=[
            'Development Status :: 4 - Beta',
            'Environment :: Console',
            'Intended Audience :: Science/Research',
            'Operating System :: POSIX :: Linux',
            'Programming Language :: Python :: 3.10',
            'Programming Language :: Python :: 3.11',
            'Programming Language :: Python :: 3.12',
            'Topic :: Scientific/Engineering :: Artificial Intelligence',
        ],
    )
