"""The worker of tf.data: TensorFlow on the CPU.

It imports nothing of this project but `serve`, because it runs in its own environment.

    python -m experiments.bench.tf_data '{"case": "data", "folder": "photos", "size": 224, "batch": 32, "batches": 30}'
"""

from pathlib import Path

from experiments.bench.worker_side import WARM, Served, after_warm_up, begin, work

if __name__ == "__main__":
    begin(__doc__, "tensorflow")  # before the imports that need it

import tensorflow as tf


def data(case: dict) -> Served:
    """Prepares decoding the crops of a folder of JPEGs, resizing and batches, by AUTOTUNE; timed from batch ten.

    The resizing is bilinear, antialiased if the case has "antialias".
    """
    files = [str(path) for path in sorted(Path(case["folder"]).rglob("*.jpg"))]

    def load(file):
        encoded = tf.io.read_file(file)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(encoded),
            tf.zeros([1, 0, 4]),
            area_range=(0.08, 1.0),
            aspect_ratio_range=(3 / 4, 4 / 3),
            use_image_if_no_bounding_boxes=True,
            min_object_covered=0.0,
        )
        window = tf.concat([begin[:2], size[:2]], 0)
        image = tf.image.decode_and_crop_jpeg(encoded, window, channels=3)
        return tf.cast(tf.image.resize(image, [case["size"]] * 2, antialias=case.get("antialias", False)), tf.uint8)

    count = (WARM + case["batches"]) * case["batch"]
    images = tf.data.Dataset.from_tensor_slices(files).repeat().take(count)
    batches = images.map(load, tf.data.AUTOTUNE).batch(case["batch"]).prefetch(tf.data.AUTOTUNE)

    def one_pass():
        return after_warm_up(batches.as_numpy_iterator())

    one_pass()
    return Served({"pass": one_pass})


if __name__ == "__main__":
    tf.config.set_visible_devices([], "GPU")
    work({"data": data})
