// SPDX-License-Identifier: Apache-2.0
// Takes a photo: with the camera app of a phone, else with the camera that the browser gives to this page.

/**
 * Ask for a photo, and call `use` with it, as a file. `capture` is the file input that opens the camera app of a phone.
 * Raises what the browser says where there is no camera, or none that this page may use.
 */
export async function takePhoto(dialog, capture, use) {
  if (matchMedia("(pointer: coarse)").matches || !navigator.mediaDevices?.getUserMedia) {
    capture.click();
    return;
  }
  const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  const video = dialog.querySelector("video");
  const [shoot, cancel] = dialog.querySelectorAll("button");
  video.srcObject = stream;
  shoot.onclick = async () => {
    const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
    canvas.getContext("2d").drawImage(video, 0, 0);
    dialog.close();
    use(await canvas.convertToBlob());
  };
  cancel.onclick = () => dialog.close();
  // The key Escape closes it as well
  dialog.onclose = () => stream.getTracks().forEach((track) => track.stop());
  dialog.showModal();
}
