"""What the files in tools/ run; each command is ``main(argv) -> int``."""
import warnings

from mmpsw.compatibility import check_mmengine

check_mmengine()  # before all that imports it

# mmengine needs it to read a zoo's config, and says so once for each.
warnings.filterwarnings('ignore', message='pkg_resources is deprecated')
