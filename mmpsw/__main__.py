"""``mmpsw train``, ``test``, ``compare``, ``average``, wherever one is."""
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

_COMMANDS = dict(train='train', test='test', compare='compare',
                 average='average_checkpoints')


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what ``tools/`` does under the same names; the exit status."""
    name, *rest = argv or sys.argv[1:] or ['--help']
    if name not in _COMMANDS:
        folder = Path(__file__).resolve().parent
        print(f'usage: mmpsw {"|".join(_COMMANDS)} [-h] ...\n\n'
              'Each says with -h what it takes. Configs of ours are called\n'
              'mmpsw::study/resnet18_digits and so on. Documents:\n'
              f'{folder}/engine/averaging/README.md\n{folder}/.mim/tools/README.md\n'
              f'{folder}/.mim/configs/README.md',
              file=sys.stdout if name in ('-h', '--help') else sys.stderr)
        return 0 if name in ('-h', '--help') else 2
    sys.argv[0] = f'mmpsw {name}'  # what its usage begins with
    return import_module(f'mmpsw.commands.{_COMMANDS[name]}').main(rest)


if __name__ == '__main__':
    raise SystemExit(main())
