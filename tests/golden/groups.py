"""Every subject, by the name of its file."""

from tests.golden.dropout import DROPOUT
from tests.golden.errors_preparation import PREPARATION_ERRORS
from tests.golden.errors_runs import RUN_ERRORS
from tests.golden.errors_settings import SETTING_ERRORS
from tests.golden.errors_tasks import TASK_ERRORS
from tests.golden.fine_tuning import FINE_TUNING
from tests.golden.model import MODEL
from tests.golden.order import ORDER
from tests.golden.prepared import PREPARED
from tests.golden.settings import SETTINGS
from tests.golden.splits import SPLITS
from tests.golden.store import Group
from tests.golden.tokenizers import TOKENIZERS

_ALL = (
    ORDER,
    DROPOUT,
    FINE_TUNING,
    SPLITS,
    PREPARED,
    TOKENIZERS,
    MODEL,
    SETTINGS,
    SETTING_ERRORS,
    PREPARATION_ERRORS,
    TASK_ERRORS,
    RUN_ERRORS,
)
GROUPS: dict[str, Group] = {group.name: group for group in _ALL}
