"""What every backend must do, seen through the public verbs. A backend joins by a file like `test_fake.py`.

The subclass supplies the fixture `backend`, and overrides `quick` and `endless` where other parameters make a training
short, or long enough to be cancelled.
"""

from contract.suite.cancelling import CancelContract
from contract.suite.refusals import RequestContract
from contract.suite.registry import ModelContract
from contract.suite.runs import ListContract, RunContract

__all__ = ["CancelContract", "ListContract", "ModelContract", "RequestContract", "RunContract"]
