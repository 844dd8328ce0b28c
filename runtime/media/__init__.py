"""Images and videos on disk.

``formats``   the table of formats, and a decoded image
``decode``, ``encode``   image files to arrays and back; ``exif`` keeps their metadata true
``frames``    frames of a video, and folders of frames
``ffmpeg``, ``video_reader``, ``video_writer``   video files through PyAV
``video``     a whole video, frame by frame; ``prefetch`` runs decoding and encoding on other threads
"""
