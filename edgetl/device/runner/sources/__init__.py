"""Sources of a runner: a folder, standard input, a video file, a camera or a network stream."""
