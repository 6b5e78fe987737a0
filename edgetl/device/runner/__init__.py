"""Runner: predict a stream of images for hours, from a folder, a video, a camera or standard input, and deliver the records."""
