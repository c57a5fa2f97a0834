"""What is published of the recipes in configs/: papers, numbers, datasets."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A public set of videos.

  Attributes:
    title: its name.
    num_classes: as `source` states it.
    source: the paper that it comes from.
    multi_label: whether a clip has any number of classes, not one.
  """

  title: str
  num_classes: int
  source: str
  multi_label: bool = False


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What a config repeats.

  Attributes:
    paper: authors, year and arXiv number; "none" where it repeats no paper.
    published: the paper's numbers in per cent, of top-1 where nothing else is
      said, and what they are of; "none". None has been reproduced here.
    dataset: a key of `DATASETS`.
    second_dataset: Dataset of the second head; "" without one.
  """

  paper: str
  published: str
  dataset: str
  second_dataset: str = ""

  @property
  def num_outputs(self) -> int:
    """Classes that a stream scores, of both heads if it has two."""
    keys = [key for key in (self.dataset, self.second_dataset) if key]
    return sum(DATASETS[key].num_classes for key in keys)


DATASETS = {
  "ucf101": Dataset("UCF-101", 101, "Soomro et al. 2012, 1212.0402"),
  "hmdb51": Dataset("HMDB-51", 51, "Kuehne et al. 2011, ICCV"),
  "ccv": Dataset(
    "Columbia Consumer Video",
    20,
    "Jiang et al. 2011, ICMR",
    multi_label=True,
  ),
  "ssv2": Dataset(
    "Something-Something v2", 174, "Goyal et al. 2017, 1706.04261"
  ),
  "ssv2_mini": Dataset(
    "a part of Something-Something v2", 174, "Goyal et al. 2017, 1706.04261"
  ),
}

# By the name of the config; docs/recipes.md has them as a table.
RECIPES = {
  "ucf101_simonyan14": Recipe(
    "Simonyan & Zisserman 2014, 1406.2199",
    "86.9 average, 88.0 SVM",
    "ucf101",
  ),
  "hmdb51_two_stream": Recipe(
    "Simonyan & Zisserman 2014, 1406.2199",
    "58.0 average, 59.4 SVM",
    "hmdb51",
    second_dataset="ucf101",
  ),
  "ucf101_wang15": Recipe("Wang et al. 2015, 1507.02159", "91.4", "ucf101"),
  "ucf101_tsn": Recipe(
    "Wang et al. 2016, 1608.00859",
    "94.0 with BN-Inception (ResNet-50 here)",
    "ucf101",
  ),
  "ucf101_conv_fusion": Recipe(
    "Feichtenhofer et al. 2016, 1604.06573",
    "91.8 one tower, 92.5 both (with fusion over time, which is absent here)",
    "ucf101",
  ),
  "ucf101_hybrid": Recipe("Wu et al. 2015, 1504.01561", "91.3", "ucf101"),
  "ccv_hybrid": Recipe("Wu et al. 2015, 1504.01561", "mAP 83.5", "ccv"),
  "ccv_multistream": Recipe(
    "Wu et al. 2015, 1509.06086",
    "mAP 84.9 with audio, which is absent here",
    "ccv",
  ),
  "ssv2_mini_two_stream": Recipe("none", "none", "ssv2_mini"),
  "ssv2_two_stream": Recipe("none", "none", "ssv2"),
}
