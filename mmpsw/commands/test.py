"""Tests a checkpoint of a config of mmdet, mmseg or mmpretrain."""
import copy
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from mmengine.config import Config, ConfigDict

from mmpsw import configs, zoo
from mmpsw.commands import options

# The stock tools' test time augmentation: a model, the flip, and how an image
# is packed where the pipeline's own last step does not keep enough.
_TTA = {
    'mmdet': (
        dict(type='DetTTAModel', tta_cfg=dict(
            nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)),
        'mmdet.RandomFlip',
        dict(type='mmdet.PackDetInputs',
             meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
                        'scale_factor', 'flip', 'flip_direction'))),
    'mmpretrain': (
        dict(type='mmpretrain.AverageClsScoreTTA'), 'RandomFlip', None),
}


# mmseg's metrics that write the predicted maps.
_WRITES_MAPS = ('IoUMetric', 'CityscapesMetric')


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``tools/test.py``; returns the exit status."""
    args = parse_args(argv)
    return options.report_errors(lambda: test(args))


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """Reads the command line (``sys.argv`` by default)."""
    parser = ArgumentParser(
        description='Test a checkpoint, trained with PSW or not: the '
        'checkpoints of both are alike.')
    options.add_config(parser)
    parser.add_argument('checkpoint', help='path or address of a .pth '
                        "file; zoo: the weights published for the config")
    parser.add_argument('--out', help='where the predictions go: a .pkl file; '
                        'with mmseg a folder')
    parser.add_argument('--show', action='store_true',
                        help='show the predictions')
    parser.add_argument('--show-dir',
                        help='folder for images with the predictions')
    parser.add_argument('--overwrite', action='store_true',
                        help='allow replacing what --out and --show-dir name')
    parser.add_argument('--wait-time', type=float, default=2,
                        help='seconds that an image is shown')
    parser.add_argument('--tta', action='store_true',
                        help='test time augmentation')
    options.add_weights(parser)
    options.add_run_options(parser)
    return parser.parse_args(argv)


def test(args: Namespace) -> dict:
    """Tests what the command line says; returns the metrics.

    Raises:
        ValueError, FileNotFoundError: Before anything is built, where an
            option, the config, the checkpoint or the data is wrong.
    """
    from mmpsw.commands import checks, data, launch
    cfg = build_config(args)
    cfg.load_from = zoo.checkpoint(args.checkpoint, args.config, args.weights)
    checks.check_checkpoint(cfg.load_from)
    data.check_topk(cfg, 'test')
    data.check_data(cfg, 'test')
    for option, path in (('--out', args.out), ('--show-dir', args.show_dir)):
        checks.check_free(option, path, args.overwrite)
    checks.make_work_dir(cfg, hold=False)
    # mmengine would write what a test makes of the config over the run's own.
    object.__setattr__(cfg, '_filename', None)
    runner = launch.build_runner(cfg)
    checks.check_fit(cfg, runner.model, whole=True)
    runner.register_hook(data.DataHook(), priority='VERY_HIGH')
    with data.explained():
        metrics = runner.test()
    launch.leave_processes()
    return metrics


def build_config(args: Namespace) -> Config:
    """Loads and transforms the config; a ValueError where one is wrong."""
    from mmpsw.commands import launch
    cfg = configs.load_config(args.config)
    options.merge_options(cfg, args)
    if cfg.get('test_dataloader') is None:
        raise ValueError(f"config '{args.config}' has no test_dataloader; "
                         'add one, with test_cfg and test_evaluator')
    launch.set_up(cfg, args)
    cfg.load_from = args.checkpoint
    cfg.resume = False
    if args.show or args.show_dir:
        _set_visualization(cfg, args)
    if args.tta:
        _set_tta(cfg)
    if args.out:
        _set_out(cfg, args.out)
    return cfg


def _set_visualization(cfg: Config, args: Namespace) -> None:
    """Turns on the framework's own visualization hook."""
    hook = (cfg.get('default_hooks') or {}).get('visualization')
    if hook is None:
        raise ValueError(
            '--show and --show-dir need default_hooks.visualization, which '
            'the config lacks; set --cfg-options '
            'default_hooks.visualization.type=VisualizationHook')
    scope = configs.framework(cfg)
    hook['enable' if scope == 'mmpretrain' else 'draw'] = True
    if args.show:
        hook.update(show=True, wait_time=args.wait_time)
    if args.show_dir:
        target, key = {
            'mmseg': (cfg.get('visualizer'), 'save_dir'),
            'mmpretrain': (hook, 'out_dir')
        }.get(scope, (hook, 'test_out_dir'))
        # mmdet's would be in the work dir, and others draw one of fifty.
        target[key] = os.path.abspath(args.show_dir)
        hook['interval'] = 1


def _set_tta(cfg: Config) -> None:
    """Wraps the model for test time augmentation, as the stock tools do."""
    scope = configs.framework(cfg)
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    if scope in _TTA:  # those of mmseg's configs are complete
        model, flip, pack = _TTA[scope]
        cfg.setdefault('tta_model', model)
        cfg.setdefault('tta_pipeline', _flips(dataset.pipeline, flip, pack))
    if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
        raise ValueError('--tta cannot be used, because the config has no '
                         'tta_model and tta_pipeline; add them, or test '
                         'without')
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    dataset.pipeline = cfg.tta_pipeline


def _flips(pipeline: list, flip: str, pack: dict | None) -> list:
    """A test pipeline, ended by packing the image and its mirror image."""
    *steps, last = copy.deepcopy(pipeline)
    flips = [dict(type=flip, prob=prob) for prob in (1., 0.)]
    augment = dict(type='TestTimeAug', transforms=[flips, [pack or last]])
    return [*steps, augment]


def _set_out(cfg: Config, out: str) -> None:
    """Adds a metric that writes the predictions; mmseg's own does it."""
    scope = configs.framework(cfg)
    metrics = cfg.test_evaluator
    metrics = [metrics] if isinstance(metrics, dict) else metrics
    if scope == 'mmseg':
        # All, where none is known to write: not nothing, in silence.
        for metric in [one for one in metrics if configs.class_name(
                one.get('type')) in _WRITES_MAPS] or metrics:
            metric.update(output_dir=out, keep_results=True)
        return
    if not out.endswith(('.pkl', '.pickle')):
        raise ValueError(f"--out '{out}' does not end in .pkl; give the name "
                         'of a pickle file for the predictions')
    kind = 'mmdet.DumpDetResults' if scope == 'mmdet' else 'DumpResults'
    cfg.test_evaluator = [*metrics, dict(type=kind, out_file_path=out)]


if __name__ == '__main__':
    raise SystemExit(main())
