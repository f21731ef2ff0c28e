"""An archive: the vectors of many videos and parts of videos as one Parquet data set, to be searched and tidied."""
